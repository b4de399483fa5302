{{/* The pod, for whatever workload brings it: dict of `root`, and `role`: service, or worker (computes only). */}}
{{- define "penstock.pod" -}}
{{- $role := .role -}}
{{- with .root -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
{{- $own := include (ternary "penstock.selector" "penstock.worker" (eq $role "service")) . -}}
metadata:
  labels:
    {{- $own | nindent 4 }}
    {{- include "penstock.labels" . | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- with omit ($v.commonAnnotations | default dict) "kubectl.kubernetes.io/default-container" "checksum/config" "k8s.v1.cni.cncf.io/networks" }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    kubectl.kubernetes.io/default-container: penstock
    # The service reads its file once: a new file means new pods.
    checksum/config: {{ include "penstock.toml" . | sha256sum }}
    {{- if and $v.rdma.enabled $v.rdma.networks }}
    k8s.v1.cni.cncf.io/networks: {{ $v.rdma.networks | quote }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "penstock.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  # Kubernetes would add PENSTOCK_* and, beside a Service of that name, VLLM_* variables.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $f.graceSeconds }}
  securityContext:
    {{- toYaml $v.podSecurityContext | nindent 4 }}
  # The pause container is process 1 and reaps what an engine that died leaves behind.
  shareProcessNamespace: true
  {{- include "penstock.pullSecrets" . | nindent 2 }}
  {{- include "penstock.placement" $v | nindent 2 }}
  {{- with $v.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (fromYaml $own))) | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- with $v.gpu.resourceClaimTemplate }}
  resourceClaims:
    - name: gpus
      resourceClaimTemplateName: {{ . | quote }}
  {{- end }}
  {{- $downloads := and $v.model.download.enabled (eq $v.model.download.by "initContainer") }}
  {{- if or $downloads $v.initContainers }}
  initContainers:
    {{- if $downloads }}
    - {{ include "penstock.download" . | nindent 6 | trim }}
    {{- end }}
    {{- with $v.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - {{ include "penstock.container" (dict "root" . "role" $role) | nindent 6 | trim }}
    {{- if eq $role "service" }}
    {{- with $v.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
  volumes:
    {{- include "penstock.volumes" . | nindent 4 }}
{{- end -}}
{{- end -}}

{{- define "penstock.container" -}}
{{- $role := .role -}}
{{- with .root -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
name: penstock
image: {{ $f.image | quote }}
imagePullPolicy: {{ $v.image.pullPolicy }}
command: [penstock, serve]
args:
  - --config
  - /etc/penstock/penstock.toml
  {{- if gt (int $f.nodes) 1 }}
  # What LeaderWorkerSet tells each pod of its place, by variables that it sets.
  - --set=engine.node_rank=$(LWS_WORKER_INDEX)
  - --set=engine.leader_address=$(LWS_LEADER_ADDRESS)
  {{- end }}
  {{- with $v.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  {{- include "penstock.env" . | nindent 2 }}
{{- $from := $v.extraEnvFrom | default list }}
{{- with $v.model.bucket.existingSecret }}
{{- $from = prepend $from (dict "secretRef" (dict "name" .)) }}
{{- end }}
{{- with $from }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq $role "service" }}
ports:
  - name: grpc
    containerPort: {{ int $f.port }}
    protocol: TCP
  # Health alone, in plaintext: Kubernetes' gRPC probes speak no TLS.
  - name: health
    containerPort: {{ int $f.probePort }}
    protocol: TCP
  {{- if $f.metricsPort }}
  - name: metrics
    containerPort: {{ int $f.metricsPort }}
    protocol: TCP
  {{- end }}
{{- end }}
securityContext:
  {{- include "penstock.capabilities" $f | nindent 2 }}
resources:
  {{- include "penstock.resources" $f | nindent 2 }}
{{- if eq $role "service" }}
{{- include "penstock.life" $f | nindent 0 }}
{{- end }}
{{- /* A worker has nobody to answer: its process ends when its part of the engine cannot be, and the group with it. */}}
volumeMounts:
  {{- include "penstock.mounts" $f | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Where a pod may be placed, and how it finds names: the service's, the workers', and the download's. */}}
{{- define "penstock.placement" -}}
{{- $v := . -}}
{{- range $key := list "runtimeClassName" "priorityClassName" "schedulerName" "dnsPolicy" }}
{{- with get $v $key }}
{{ $key }}: {{ . | quote }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "dnsConfig" "hostAliases" }}
{{- with get $v $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* RDMA pins memory, which takes a capability that `restricted` does not allow; nothing else does. */}}
{{- define "penstock.capabilities" -}}
{{- $context := deepCopy .v.securityContext -}}
{{- if and .v.rdma.enabled .v.rdma.ipcLock -}}
{{- $capabilities := $context.capabilities | default dict -}}
{{- $_ := set $capabilities "add" (append ($capabilities.add | default list) "IPC_LOCK" | uniq) -}}
{{- $_ := set $context "capabilities" $capabilities -}}
{{- end -}}
{{- toYaml $context -}}
{{- end -}}

{{/* Probes and the end. Three questions, three answers:
     startup    has the engine generated a real token yet? Until then the other two rest, however long it loads.
     readiness  can the engine take work now? ("" is the health of the whole service)
     liveness   do the process and its supervisor live? An engine that restarts inside the pod does not fail it. */}}
{{- define "penstock.life" -}}
{{- $probes := .v.probes -}}
startupProbe:
  grpc: { port: {{ int .probePort }} }
  periodSeconds: {{ int $probes.startup.periodSeconds }}
  timeoutSeconds: 5
  failureThreshold: {{ divf .startupSeconds $probes.startup.periodSeconds | ceil | int }}
readinessProbe:
  grpc: { port: {{ int .probePort }} }
  periodSeconds: {{ int $probes.readiness.periodSeconds }}
  timeoutSeconds: {{ int $probes.readiness.timeoutSeconds }}
  failureThreshold: {{ int $probes.readiness.failureThreshold }}
livenessProbe:
  grpc: { port: {{ int .probePort }}, service: liveness }
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
{{- /* A cache that lives on the node's disk is asked for, so that the pod is not placed where it would be evicted. */ -}}
{{- if not .v.persistence.enabled -}}
{{- $disk := dict "ephemeral-storage" (printf "%dGi" (add 1 (mul 2 (ternary .sizeGiB 0 .fromNetwork)))) -}}
{{- $_ := set $resources "requests" (merge (deepCopy ($resources.requests | default dict)) $disk) -}}
{{- end -}}
{{- if .v.gpu.resourceClaimTemplate -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpus")) -}}
{{- else if gt (int .gpus) 0 -}}
{{- $gpus := dict .v.gpu.resourceName (toString .gpus) -}}
{{- $_ := set $resources "limits" (merge (deepCopy ($resources.limits | default dict)) $gpus) -}}
{{- $_ := set $resources "requests" (merge (deepCopy ($resources.requests | default dict)) $gpus) -}}
{{- end -}}
{{- if .v.rdma.enabled -}}
{{- range $side := list "limits" "requests" -}}
{{- $_ := set $resources $side (merge (deepCopy (get $resources $side | default dict)) (dict $.v.rdma.resourceName (toString $.v.rdma.count))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}
