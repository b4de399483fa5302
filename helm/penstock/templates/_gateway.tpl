{{- define "penstock.gateway.name" -}}
{{ include "penstock.fullname" . }}-gateway
{{- end -}}

{{- define "penstock.gateway.selector" -}}
app.kubernetes.io/name: {{ include "penstock.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: gateway
{{- end -}}

{{/* The head of the metadata of the gateway's objects. A dict of `root`, and where wanted `labels` and `annotations`. */}}
{{- define "penstock.gateway.metadata" -}}
{{- $labels := merge (include "penstock.gateway.selector" .root | fromYaml) (.labels | default dict) -}}
{{- include "penstock.metadata" (dict "root" .root "name" (include "penstock.gateway.name" .root) "selector" false "labels" $labels "annotations" .annotations) -}}
{{- end -}}

{{/* What the chart works out for the gateway, as YAML, from the service's facts. */}}
{{- define "penstock.gateway.facts" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}{{- $g := $v.gateway -}}
{{- $service := include "penstock.fullname" . -}}
{{- $namespace := include "penstock.namespace" . -}}
{{- $drain := hasKey $g "drainSeconds" | ternary $g.drainSeconds $f.drainSeconds | ceil | int | max 1 -}}
{{- /* The service's own Secret has the authority's certificate, if no other is named. Its key is not mounted. */ -}}
{{- $ownSecret := $v.tls.existingSecret | default (ternary (printf "%s-tls" $service) "" $v.tls.certManager.enabled) -}}
{{- $facts := dict
  "target" (ternary
    (printf "dns:///%s-headless.%s.svc:%d" $service $namespace (int $f.port))
    (printf "dns:///%s.%s.svc:%d" $service $namespace (int $v.service.port))
    $v.service.headless.enabled)
  "caSecret" (ternary "" ($g.tls.caSecret | default $ownSecret) $g.tls.systemCertificates)
  "serverName" ($g.tls.serverName | default (printf "%s.%s.svc" $service $namespace))
  "drainSeconds" $drain
  "graceSeconds" (add ($v.preStopSeconds | int) $drain 15 | int)
  "leastReplicas" (ternary $g.autoscaling.minReplicas $g.replicaCount $g.autoscaling.enabled | int)
  "image" (include "penstock.image" (dict "global" ($v.global | default dict) "registry" $v.image.registry "image" $g.image "tag" .Chart.AppVersion))
-}}
{{- toYaml $facts -}}
{{- end -}}

{{- define "penstock.gateway.arguments" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $g := $f.v.gateway -}}
{{- $mine := include "penstock.gateway.facts" . | fromYaml -}}
- --listen=[::]:{{ int $g.port }}
# All replicas of the service, in turn.
- --target={{ $mine.target }}
{{- if not $f.secure }}
# Callers' keys pass through: what encrypts them in the cluster is a mesh, or `tls`.
- --plaintext
{{- else }}
{{- if $mine.caSecret }}
- --ca=/etc/penstock/ca/ca.crt
{{- else }}
- --tls
{{- end }}
- --tls-server-name={{ $mine.serverName }}
{{- if $g.tls.clientSecret }}
- --certificate=/etc/penstock/client/tls.crt
- --key=/etc/penstock/client/tls.key
{{- end }}
{{- end }}
- --limit=drain_seconds={{ int $mine.drainSeconds }}
{{- range $name, $value := $g.limits }}
{{- /* Helm reads large integers as floats, and prints them as 1e+06. */}}
- --limit={{ $name }}={{ ternary (toString $value) (printf "%d" (int64 $value)) (hasSuffix "_seconds" $name) }}
{{- end }}
{{- end -}}

{{- define "penstock.gateway.env" -}}
{{- $v := (include "penstock.facts" . | fromYaml).v -}}
{{- $name := include "penstock.gateway.name" . -}}
{{- range $variable, $path := dict "K8S_POD_NAME" "metadata.name" "K8S_POD_UID" "metadata.uid" "K8S_NODE_NAME" "spec.nodeName" }}
- { name: {{ $variable }}, valueFrom: { fieldRef: { fieldPath: {{ $path }} } } }
{{- end }}
- { name: OTEL_SERVICE_NAME, value: {{ $name | quote }} }
- name: OTEL_RESOURCE_ATTRIBUTES
  value: >-
    service.instance.id=$(K8S_POD_UID),k8s.namespace.name={{ include "penstock.namespace" . }},k8s.deployment.name={{ $name }},k8s.pod.name=$(K8S_POD_NAME),k8s.pod.uid=$(K8S_POD_UID),k8s.node.name=$(K8S_NODE_NAME),k8s.container.name=gateway
{{- $telemetry := $v.config.telemetry | default dict }}
{{- if and $telemetry.otlp_endpoint (ne ($telemetry.otlp | default "auto") "off") (ne (toString $telemetry.traces) "false") }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $telemetry.otlp_endpoint | quote }} }
- { name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ ternary "http/protobuf" "grpc" (eq ($telemetry.otlp | default "auto") "http") }} }
{{- end }}
{{- with $v.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.gateway.pod" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}{{- $g := $v.gateway -}}
{{- $mine := include "penstock.gateway.facts" . | fromYaml -}}
{{- $selector := include "penstock.gateway.selector" . -}}
metadata:
  labels:
    {{- $selector | nindent 4 }}
    {{- include "penstock.labels" . | nindent 4 }}
    {{- with $g.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- with omit ($v.commonAnnotations | default dict) "kubectl.kubernetes.io/default-container" }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    kubectl.kubernetes.io/default-container: gateway
    {{- with $g.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "penstock.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int $mine.graceSeconds }}
  securityContext:
    {{- toYaml $v.podSecurityContext | nindent 4 }}
  {{- include "penstock.pullSecrets" . | nindent 2 }}
  {{- /* Where a gateway may be placed is its own; how names are found is the service's. */}}
  {{- include "penstock.placement" (merge (pick $g "priorityClassName" "nodeSelector" "tolerations" "affinity") (pick $v "dnsPolicy" "dnsConfig" "hostAliases" "schedulerName")) | nindent 2 }}
  topologySpreadConstraints:
    {{- range $g.topologySpreadConstraints | default (list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway")) }}
    - {{ merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (fromYaml $selector))) | toYaml | nindent 6 | trim }}
    {{- end }}
  containers:
    - name: gateway
      image: {{ $mine.image | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [python3, -m, penstock_gateway]
      args:
        {{- include "penstock.gateway.arguments" . | nindent 8 }}
      env:
        {{- include "penstock.gateway.env" . | trim | nindent 8 }}
      ports:
        - { name: http, containerPort: {{ int $g.port }}, protocol: TCP }
      # Ready: the service answers. Live: this process does, whether or not the service can be reached.
      readinessProbe:
        httpGet: { path: /readyz, port: http }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      livenessProbe:
        httpGet: { path: /healthz, port: http }
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      {{- if gt (int $v.preStopSeconds) 0 }}
      lifecycle:
        preStop:
          # Until endpoints and proxies have heard that this pod goes, while it still answers. Then SIGTERM, and the drain.
          sleep: { seconds: {{ int $v.preStopSeconds }} }
      {{- end }}
      securityContext:
        {{- toYaml $v.securityContext | nindent 8 }}
      resources:
        {{- toYaml $g.resources | nindent 8 }}
      {{- if and $f.secure (or $mine.caSecret $g.tls.clientSecret) }}
      volumeMounts:
        {{- if $mine.caSecret }}
        - { name: ca, mountPath: /etc/penstock/ca, readOnly: true }
        {{- end }}
        {{- if $g.tls.clientSecret }}
        - { name: client, mountPath: /etc/penstock/client, readOnly: true }
        {{- end }}
      {{- end }}
  {{- if and $f.secure (or $mine.caSecret $g.tls.clientSecret) }}
  volumes:
    {{- if $mine.caSecret }}
    - name: ca
      secret: { secretName: {{ $mine.caSecret | quote }}, defaultMode: 0440, items: [{ key: ca.crt, path: ca.crt }] }
    {{- end }}
    {{- if $g.tls.clientSecret }}
    - name: client
      secret: { secretName: {{ $g.tls.clientSecret | quote }}, defaultMode: 0440, items: [{ key: tls.crt, path: tls.crt }, { key: tls.key, path: tls.key }] }
    {{- end }}
  {{- end }}
{{- end -}}
