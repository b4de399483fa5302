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
{{- if and .secure (eq (int .probePort) (int .port)) -}}
{{- $wrong = append $wrong (printf "config.server.health_listen: port %d is server.listen's, and probes speak no TLS" (int .port)) -}}
{{- end -}}
{{- if and .metricsPort (ne (int .probePort) (int .port)) (eq (int .probePort) (int .metricsPort)) -}}
{{- $wrong = append $wrong (printf "config.server.health_listen: port %d is config.telemetry.prometheus_listen's" (int .probePort)) -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
