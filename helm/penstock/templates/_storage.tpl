{{/* Where the pod may write, and what it reads. The root file system is read-only: everything that vLLM, torch, Triton
     and Hugging Face keep goes to /cache, the rest to /tmp. */}}
{{- define "penstock.env" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
{{- /* Compiled kernels fit one image and one kind of GPU. */ -}}
{{- $kind := printf "%s %s" $f.image (toJson ($v.nodeSelector | default dict)) | sha256sum | trunc 12 -}}
- { name: HOME, value: /cache }
- { name: XDG_CACHE_HOME, value: /cache/xdg }
- { name: HF_HOME, value: /cache/huggingface }
- { name: VLLM_CACHE_ROOT, value: /cache/{{ $kind }}/vllm }
- { name: TRITON_CACHE_DIR, value: /cache/{{ $kind }}/triton }
- { name: TORCHINDUCTOR_CACHE_DIR, value: /cache/{{ $kind }}/inductor }
{{- range $name, $path := dict "K8S_POD_NAME" "metadata.name" "K8S_POD_UID" "metadata.uid" "K8S_NODE_NAME" "spec.nodeName" }}
- { name: {{ $name }}, valueFrom: { fieldRef: { fieldPath: {{ $path }} } } }
{{- end }}
- { name: OTEL_SERVICE_NAME, value: {{ include "penstock.fullname" . | quote }} }
- name: OTEL_RESOURCE_ATTRIBUTES
  value: >-
    service.instance.id=$(K8S_POD_UID),k8s.namespace.name={{ include "penstock.namespace" . }},{{ if gt (int $f.nodes) 1 }}k8s.statefulset.name={{ include "penstock.groupName" . }}{{ else }}k8s.deployment.name={{ include "penstock.fullname" . }}{{ end }},k8s.pod.name=$(K8S_POD_NAME),k8s.pod.uid=$(K8S_POD_UID),k8s.node.name=$(K8S_NODE_NAME),k8s.container.name=penstock
{{- if gt (int $f.nodes) 1 }}
# The address on which nodes talk to each other; a host may have several.
- { name: VLLM_HOST_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
{{- end }}
{{- if $v.model.offline }}
- { name: HF_HUB_OFFLINE, value: "1" }
{{- end }}
{{- with $v.model.token.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: { name: {{ . | quote }}, key: {{ $v.model.token.key | quote }} }
{{- end }}
{{- with $v.model.bucket.endpoint }}
- { name: AWS_ENDPOINT_URL, value: {{ . | quote }} }
{{- end }}
{{- with $v.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.mounts" -}}
- { name: config, mountPath: /etc/penstock/penstock.toml, subPath: penstock.toml, readOnly: true }
- { name: cache, mountPath: /cache }
- { name: tmp, mountPath: /tmp }
- { name: shm, mountPath: /dev/shm }
{{- if .v.resumeKey.existingSecret }}
- { name: resume-key, mountPath: /etc/penstock/resume, readOnly: true }
{{- end }}
{{- if and .secure (not .v.config.tls) }}
# Directories, not single files: only those follow when the Secret changes.
- { name: tls, mountPath: /etc/penstock/tls, readOnly: true }
{{- if .v.tls.clientCaSecret }}
- { name: client-ca, mountPath: /etc/penstock/client-ca, readOnly: true }
{{- end }}
{{- end }}
{{- if .v.apiKeys.existingSecret }}
- { name: keys, mountPath: /etc/penstock/keys, readOnly: true }
{{- end }}
{{- if .v.redisPassword.existingSecret }}
- { name: redis-password, mountPath: /etc/penstock/redis, readOnly: true }
{{- end }}
{{- if .v.callers.existingConfigMap }}
- { name: callers, mountPath: /etc/penstock/callers, readOnly: true }
{{- end }}
{{- if .modelMounted }}
- name: model
  mountPath: /models
  readOnly: true
  {{- with .v.model.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.volumes" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
- name: config
  configMap: { name: {{ include "penstock.fullname" . | quote }} }
- name: cache
  {{- if $v.persistence.enabled }}
  persistentVolumeClaim: { claimName: {{ $v.persistence.existingClaim | default (printf "%s-cache" (include "penstock.fullname" .)) | quote }} }
  {{- else }}
  emptyDir: { sizeLimit: {{ $f.cacheSize }} }
  {{- end }}
- name: tmp
  emptyDir: { sizeLimit: {{ $v.tmpSize }} }
- name: shm
  # The runtime's own /dev/shm has 64 MiB. This one counts as memory of the container.
  emptyDir: { medium: Memory, sizeLimit: {{ $f.shmSize }} }
{{- with $v.resumeKey.existingSecret }}
- name: resume-key
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - { key: {{ $v.resumeKey.key | quote }}, path: key }
{{- end }}
{{- if and $f.secure (not $v.config.tls) }}
- name: tls
  secret: { secretName: {{ $v.tls.existingSecret | default (printf "%s-tls" (include "penstock.fullname" .)) | quote }}, defaultMode: 0440 }
{{- with $v.tls.clientCaSecret }}
- name: client-ca
  secret: { secretName: {{ . | quote }}, defaultMode: 0440, items: [{ key: ca.crt, path: ca.crt }] }
{{- end }}
{{- end }}
{{- with $v.apiKeys.existingSecret }}
- name: keys
  secret: { secretName: {{ . | quote }}, defaultMode: 0440, items: [{ key: {{ $v.apiKeys.key | quote }}, path: keys.json }] }
{{- end }}
{{- with $v.redisPassword.existingSecret }}
- name: redis-password
  secret: { secretName: {{ . | quote }}, defaultMode: 0440, items: [{ key: {{ $v.redisPassword.key | quote }}, path: password }] }
{{- end }}
{{- with $v.callers.existingConfigMap }}
- name: callers
  configMap: { name: {{ . | quote }}, items: [{ key: {{ $v.callers.key | quote }}, path: callers.toml }] }
{{- end }}
{{- if $v.model.existingClaim }}
- name: model
  persistentVolumeClaim: { claimName: {{ $v.model.existingClaim | quote }}, readOnly: true }
{{- else if $v.model.image }}
- name: model
  image: { reference: {{ $v.model.image | quote }}, pullPolicy: {{ $v.model.imagePullPolicy }} }
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
