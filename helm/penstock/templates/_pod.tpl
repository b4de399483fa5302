{{/* The pod, for whatever workload brings it. */}}
{{- define "penstock.pod" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
metadata:
  labels:
    {{- include "penstock.selector" . | nindent 4 }}
    {{- include "penstock.labels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: penstock
    # The service reads its file once: a new file means new pods.
    checksum/config: {{ include "penstock.toml" . | sha256sum }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "penstock.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Kubernetes would add PENSTOCK_* and, beside a Service of that name, VLLM_* variables.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $f.graceSeconds }}
  securityContext:
    {{- toYaml $v.podSecurityContext | nindent 4 }}
  {{- with $v.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- range $key := list "runtimeClassName" "priorityClassName" "schedulerName" }}
  {{- with get $v $key }}
  {{ $key }}: {{ . }}
  {{- end }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with get $v $key }}
  {{ $key }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- with $v.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $own := dict "labelSelector" (dict "matchLabels" (include "penstock.selector" $ | fromYaml)) }}
    - {{ merge (deepCopy .) $own | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- with $v.gpu.resourceClaimTemplate }}
  resourceClaims:
    - name: gpus
      resourceClaimTemplateName: {{ . }}
  {{- end }}
  containers:
    - {{ include "penstock.container" . | nindent 6 | trim }}
  volumes:
    {{- include "penstock.volumes" . | nindent 4 }}
{{- end -}}

{{- define "penstock.container" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
name: penstock
image: {{ $f.image | quote }}
imagePullPolicy: {{ $v.image.pullPolicy }}
command: [penstock, serve]
args:
  - --config
  - /etc/penstock/penstock.toml
  {{- with $v.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  {{- include "penstock.env" . | nindent 2 }}
ports:
  - name: grpc
    containerPort: {{ int $f.port }}
    protocol: TCP
  {{- if $f.metricsPort }}
  - name: metrics
    containerPort: {{ int $f.metricsPort }}
    protocol: TCP
  {{- end }}
securityContext:
  {{- toYaml $v.securityContext | nindent 2 }}
resources:
  {{- include "penstock.resources" $f | nindent 2 }}
{{- include "penstock.life" $f | nindent 0 }}
volumeMounts:
  {{- include "penstock.mounts" $f | nindent 2 }}
{{- end -}}

{{/* Probes and the end. Three questions, three answers:
     startup    has the engine generated a real token yet? Until then the other two rest, however long it loads.
     readiness  can the engine take work now? ("" is the health of the whole service)
     liveness   do the process and its supervisor live? An engine that restarts inside the pod does not fail it. */}}
{{- define "penstock.life" -}}
{{- $probes := .v.probes -}}
startupProbe:
  grpc: { port: {{ int .port }} }
  periodSeconds: {{ int $probes.startup.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: {{ divf .startupSeconds $probes.startup.periodSeconds | ceil | int }}
readinessProbe:
  grpc: { port: {{ int .port }} }
  periodSeconds: {{ int $probes.readiness.periodSeconds }}
  timeoutSeconds: {{ int $probes.readiness.timeoutSeconds }}
  failureThreshold: {{ int $probes.readiness.failureThreshold }}
livenessProbe:
  grpc: { port: {{ int .port }}, service: liveness }
  periodSeconds: {{ int $probes.liveness.periodSeconds }}
  timeoutSeconds: {{ int $probes.liveness.timeoutSeconds }}
  failureThreshold: {{ int $probes.liveness.failureThreshold }}
{{- if gt (int .v.preStopSeconds) 0 }}
lifecycle:
  preStop:
    # Not the drain: the time until endpoints, proxies and gateways have heard that this pod goes, while it still
    # answers. SIGTERM comes after it, and the service then drains until its last stream has ended.
    sleep: { seconds: {{ int .v.preStopSeconds }} }
{{- end }}
{{- end -}}

{{- define "penstock.resources" -}}
{{- $resources := deepCopy (.v.resources | default dict) -}}
{{- if .v.gpu.resourceClaimTemplate -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpus")) -}}
{{- else if gt (int .gpus) 0 -}}
{{- $gpus := dict .v.gpu.resourceName (toString .gpus) -}}
{{- $_ := set $resources "limits" (merge (deepCopy ($resources.limits | default dict)) $gpus) -}}
{{- $_ := set $resources "requests" (merge (deepCopy ($resources.requests | default dict)) $gpus) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
