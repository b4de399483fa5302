{{- define "penstock.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Room is left for `-headless` and the like. */}}
{{- define "penstock.fullname" -}}
{{- $name := include "penstock.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end -}}

{{/* The pods of a group that only compute: no Service finds them. */}}
{{- define "penstock.worker" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: worker
{{- end -}}

{{/* Leaders and workers, where there are any. */}}
{{- define "penstock.everyPod" -}}
matchLabels:
  app.kubernetes.io/name: {{ include "penstock.name" . }}
  app.kubernetes.io/instance: {{ .Release.Name }}
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
{ apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: {{ include "penstock.groupName" . }} }
{{- else -}}
{ apiVersion: apps/v1, kind: Deployment, name: {{ include "penstock.fullname" . }} }
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

{{- define "penstock.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "penstock.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}
