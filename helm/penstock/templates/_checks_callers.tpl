{{/* Values that contradict each other: who may call, encrypted how. */}}
{{- define "penstock.checks.callers" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- $tls := $v.config.tls | default dict -}}
{{- $own := or $v.tls.existingSecret $v.tls.certManager.enabled | not | not -}}
{{- if and $v.tls.existingSecret $v.tls.certManager.enabled -}}
{{- $wrong = append $wrong "tls.existingSecret, tls.certManager.enabled: two certificates for one listener" -}}
{{- end -}}
{{- if and $own $tls -}}
{{- $wrong = append $wrong "config.tls: tls.existingSecret or tls.certManager sets it" -}}
{{- end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) -}}
{{- $wrong = append $wrong "tls.certManager.issuerRef.name: a certificate needs an issuer" -}}
{{- end -}}
{{- if and $v.tls.mutual (not $own) -}}
{{- $wrong = append $wrong "tls.mutual: has no effect without tls.existingSecret or tls.certManager.enabled" -}}
{{- end -}}
{{- if and $v.tls.clientCaSecret (not $v.tls.mutual) -}}
{{- $wrong = append $wrong "tls.clientCaSecret: has no effect while tls.mutual is false" -}}
{{- end -}}
{{- if and $v.tls.mutual $own (not $v.tests.clientSecret) -}}
{{- $wrong = append $wrong "tests.clientSecret: under tls.mutual `helm test` needs a certificate of its own" -}}
{{- end -}}
{{- $auth := $v.config.auth | default dict -}}
{{- if and $v.apiKeys.existingSecret $auth.keys_file -}}
{{- $wrong = append $wrong "config.auth.keys_file: apiKeys.existingSecret sets it" -}}
{{- end -}}
{{- if and $v.callers.existingConfigMap $auth.callers_file -}}
{{- $wrong = append $wrong "config.auth.callers_file: callers.existingConfigMap sets it" -}}
{{- end -}}
{{- if and $v.apiKeys.existingSecret (not $v.tests.apiKey.existingSecret) -}}
{{- $wrong = append $wrong "tests.apiKey.existingSecret: `helm test` calls as others do, and apiKeys asks for a key" -}}
{{- end -}}
{{- if and $auth.certificates (not $v.tls.mutual) (not $tls.client_ca_file) -}}
{{- $wrong = append $wrong "config.auth.certificates: needs tls.mutual, or nobody shows a certificate" -}}
{{- end -}}
{{- if eq (int .probePort) (int .port) -}}
{{- $wrong = append $wrong (printf "config.server.health_listen: port %d is server.listen's: health has a port of its own" (int .port)) -}}
{{- end -}}
{{- if and .metricsPort (eq (int .probePort) (int .metricsPort)) -}}
{{- $wrong = append $wrong (printf "config.server.health_listen: port %d is config.telemetry.prometheus_listen's" (int .probePort)) -}}
{{- end -}}
{{- $quotas := $v.config.quotas | default dict -}}
{{- $known := or $v.apiKeys.existingSecret $auth.keys_file $auth.keys $auth.certificates (dig "jwt" "issuer" "" $v.config) -}}
{{- if and (not $known) (or $v.callers.existingConfigMap $auth.callers_file) -}}
{{- $wrong = append $wrong "callers.existingConfigMap: nothing says who calls: apiKeys, config.auth or config.jwt" -}}
{{- end -}}
{{- if and (not $known) $quotas -}}
{{- $wrong = append $wrong "config.quotas: nothing says who calls: apiKeys, config.auth or config.jwt" -}}
{{- end -}}
{{- if and $v.redisPassword.existingSecret $quotas.redis_password_file -}}
{{- $wrong = append $wrong "config.quotas.redis_password_file: redisPassword.existingSecret sets it" -}}
{{- end -}}
{{- if and $v.redisPassword.existingSecret (not $quotas.redis_url) -}}
{{- $wrong = append $wrong "redisPassword.existingSecret: has no effect without config.quotas.redis_url" -}}
{{- end -}}
{{- if and $quotas.daily_file (gt (int .mostReplicas) 1) -}}
{{- $wrong = append $wrong (printf "config.quotas.daily_file: one service alone may hold it, and there may be %d replicas: use redis_url" (int .mostReplicas)) -}}
{{- end -}}
{{- $writable := list "/cache/" "/tmp/" -}}
{{- range $v.extraVolumeMounts -}}{{- if not .readOnly -}}{{- $writable = append $writable (printf "%s/" (trimSuffix "/" .mountPath)) -}}{{- end -}}{{- end -}}
{{- range $key, $file := dict "quotas.daily_file" $quotas.daily_file "audit.file" (dig "audit" "file" "-" $v.config) -}}
{{- if and $file (ne $file "-") -}}
{{- $fits := false -}}
{{- range $writable -}}{{- if hasPrefix . $file -}}{{- $fits = true -}}{{- end -}}{{- end -}}
{{- if not $fits -}}
{{- $wrong = append $wrong (printf "config.%s: %s is on the read-only root: below /cache, or on a volume of extraVolumeMounts" $key $file) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
