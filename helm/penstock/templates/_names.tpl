{{- define "penstock.name" -}}
{{- .Values.nameOverride | default "" | toString | default .Chart.Name | trunc 52 | trimAll "-." -}}
{{- end -}}

{{/* The name of the release's objects: a DNS label that begins with a letter, as a Service needs it. Helm allows dots in
     release names and names that are numbers. 52 characters leave room for suffixes such as `-headless`. */}}
{{- define "penstock.fullname" -}}
{{- $name := include "penstock.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = .Values.fullnameOverride | default "" | toString | default $full | replace "." "-" -}}
{{- if regexMatch "^[0-9]" $full -}}{{- $full = printf "%s-%s" .Chart.Name $full -}}{{- end -}}
{{- $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The namespace of the release's objects. */}}
{{- define "penstock.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* The head of an object's metadata. A dict of `root`, `name`, and where wanted: `selector` (false: the object must not
     carry the labels that select the service's pods), `labels` and `annotations` (dicts). */}}
{{- define "penstock.metadata" -}}
{{- $annotations := merge dict (.annotations | default dict) (.root.Values.commonAnnotations | default dict) -}}
name: {{ .name | quote }}
namespace: {{ include "penstock.namespace" .root | quote }}
labels:
  {{- if ne (toString .selector) "false" }}
  {{- include "penstock.selector" .root | nindent 2 }}
  {{- end }}
  {{- include "penstock.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ include "penstock.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: service
{{- end -}}

{{/* The pods of a group that only compute: no Service finds them. */}}
{{- define "penstock.worker" -}}
app.kubernetes.io/name: {{ include "penstock.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: worker
{{- end -}}

{{/* The pod of `helm test`, which the NetworkPolicy lets in. */}}
{{- define "penstock.testPod" -}}
app.kubernetes.io/name: {{ include "penstock.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
{{- end -}}

{{/* Leaders and workers, where there are any. */}}
{{- define "penstock.everyPod" -}}
matchLabels:
  app.kubernetes.io/name: {{ include "penstock.name" . | quote }}
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
matchExpressions:
  - { key: app.kubernetes.io/component, operator: In, values: [service, worker] }
{{- end -}}

{{/* LeaderWorkerSet makes a Service of its own name, and StatefulSets whose names must fit into a label. */}}
{{- define "penstock.groupName" -}}
{{- include "penstock.fullname" . | trunc 40 | trimSuffix "-" -}}-nodes
{{- end -}}

{{/* What scales: `kind` and name of the workload, with its API. */}}
{{- define "penstock.workload" -}}
{{- if gt (int (include "penstock.facts" . | fromYaml).nodes) 1 -}}
{ apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: {{ include "penstock.groupName" . | quote }} }
{{- else -}}
{ apiVersion: apps/v1, kind: Deployment, name: {{ include "penstock.fullname" . | quote }} }
{{- end -}}
{{- end -}}

{{- define "penstock.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: penstock
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Pull secrets, as Kubernetes writes them: names alone and `{ name: ... }` are both taken, the parent chart's as well. */}}
{{- define "penstock.pullSecrets" -}}
{{- $names := list -}}
{{- range concat (.Values.imagePullSecrets | default list) ((.Values.global | default dict).imagePullSecrets | default list) -}}
{{- if kindIs "map" . -}}{{- $names = append $names .name -}}{{- else -}}{{- $names = append $names . -}}{{- end -}}
{{- end -}}
{{- with $names | uniq -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "penstock.serviceAccountName" -}}
{{- $account := (include "penstock.facts" . | fromYaml).v.serviceAccount -}}
{{- $account.name | default (ternary (include "penstock.fullname" .) "default" $account.create) -}}
{{- end -}}
