{{/* The port of an address: the one that it names, else its scheme's; `otherwise` where it has no scheme that we know. */}}
{{- define "penstock.portOf" -}}
{{- $rest := regexReplaceAll "^[A-Za-z][A-Za-z0-9+.-]*://" .address "" -}}
{{- $host := regexReplaceAll "^.*@" (regexReplaceAll "[/?#].*$" $rest "") "" -}}
{{- $named := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- $scheme := regexFind "^[A-Za-z][A-Za-z0-9+.-]*://" .address | trimSuffix "://" | lower -}}
{{- $usual := dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" "socks5" "1080" "socks5h" "1080" -}}
{{- $named | default (get $usual $scheme) | default .otherwise -}}
{{- end -}}

{{/* TCP ports beside DNS that the service calls out to, as a YAML list: whatever the values' addresses name. */}}
{{- define "penstock.egressPorts" -}}
{{- $f := . -}}{{- $v := .v -}}{{- $ports := list -}}
{{- if $f.fromNetwork -}}{{- $ports = append $ports "443" -}}{{- end -}}
{{- with $v.model.bucket.endpoint -}}{{- $ports = append $ports (include "penstock.portOf" (dict "address" . "otherwise" "443")) -}}{{- end -}}
{{- $jwt := $v.config.jwt | default dict -}}
{{- /* Keys of the issuer: a file, an address, or by discovery at the issuer, which may name another host. */ -}}
{{- if and $jwt.issuer (not $jwt.jwks_file) -}}
{{- $ports = append $ports (include "penstock.portOf" (dict "address" ($jwt.jwks_url | default $jwt.issuer) "otherwise" "443")) -}}
{{- end -}}
{{- with dig "quotas" "redis_url" "" $v.config -}}
{{- if not (hasPrefix "unix:" .) -}}{{- $ports = append $ports (include "penstock.portOf" (dict "address" . "otherwise" "6379")) -}}{{- end -}}
{{- end -}}
{{- $collectors := list (dig "telemetry" "otlp_endpoint" "" $v.config) -}}
{{- range $v.extraEnv -}}
{{- $value := get . "value" | default "" -}}
{{- if regexMatch "^OTEL_EXPORTER_OTLP(_TRACES|_METRICS|_LOGS)?_ENDPOINT$" .name -}}{{- $collectors = append $collectors $value -}}{{- end -}}
{{- if and $value (regexMatch "^(HTTPS?|ALL|https?|all)_(PROXY|proxy)$" .name) -}}{{- $ports = append $ports (include "penstock.portOf" (dict "address" $value "otherwise" "80")) -}}{{- end -}}
{{- if and $value (has .name (list "HF_ENDPOINT" "AWS_ENDPOINT_URL" "AWS_ENDPOINT_URL_S3")) -}}{{- $ports = append $ports (include "penstock.portOf" (dict "address" $value "otherwise" "443")) -}}{{- end -}}
{{- end -}}
{{- $ports = concat $ports (include "penstock.collectorPorts" $collectors | fromYamlArray) -}}
{{- toYaml ($ports | uniq | sortAlpha) -}}
{{- end -}}

{{/* Ports of OTLP collectors, by their addresses, as a YAML list. */}}
{{- define "penstock.collectorPorts" -}}
{{- $ports := list -}}
{{- range compact . -}}
{{- /* gRPC takes 443 where no port is named, whatever the scheme; OTLP over HTTP the scheme's. */ -}}
{{- $port := include "penstock.portOf" (dict "address" . "otherwise" "443") -}}
{{- $ports = append $ports $port -}}{{- if eq $port "80" -}}{{- $ports = append $ports "443" -}}{{- end -}}
{{- end -}}
{{- toYaml $ports -}}
{{- end -}}

{{/* TCP ports that the gateway calls out to beside the service and DNS, as a YAML list. Takes the values in force. */}}
{{- define "penstock.gateway.egressPorts" -}}
{{- $ports := list -}}
{{- $collectors := list (dig "telemetry" "otlp_endpoint" "" .config) -}}
{{- range .gateway.extraEnv -}}
{{- $value := get . "value" | default "" -}}
{{- if regexMatch "^OTEL_EXPORTER_OTLP(_TRACES)?_ENDPOINT$" .name -}}{{- $collectors = append $collectors $value -}}{{- end -}}
{{- if and $value (eq .name "PENSTOCK_PLAYGROUND_METRICS_URL") -}}{{- $ports = append $ports (include "penstock.portOf" (dict "address" $value "otherwise" "80")) -}}{{- end -}}
{{- end -}}
{{- toYaml (concat $ports (include "penstock.collectorPorts" $collectors | fromYamlArray) | uniq | sortAlpha) -}}
{{- end -}}

{{- define "penstock.egress.dns" -}}
- ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
    - { port: 5353, protocol: UDP }
    - { port: 5353, protocol: TCP }
{{- end -}}

{{/* Egress rules: DNS (5353 is OpenShift's), and the ports above. */}}
{{- define "penstock.egress" -}}
{{- if .v.networkPolicy.dns }}
{{ include "penstock.egress.dns" . }}
{{- end }}
{{- with include "penstock.egressPorts" . | fromYamlArray }}
- ports:
    {{- range . }}
    - { port: {{ . }}, protocol: TCP }
    {{- end }}
{{- end }}
{{- with .v.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
