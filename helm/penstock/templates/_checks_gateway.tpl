{{/* Values that contradict each other: the gateway. */}}
{{- define "penstock.checks.gateway" -}}
{{- $f := .f -}}{{- $v := $f.v -}}{{- $g := $v.gateway -}}{{- $wrong := list -}}
{{- if not $g.enabled -}}
{{- range $part := list "httpRoute" "ingress" "autoscaling" -}}
{{- if (get $g $part).enabled -}}
{{- $wrong = append $wrong (printf "gateway.%s.enabled: has no effect while gateway.enabled is false" $part) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $mine := include "penstock.gateway.facts" .root | fromYaml -}}
{{- $wrong = concat $wrong
  (include "penstock.checks.gateway.tls" (dict "f" $f "mine" $mine) | fromYamlArray)
  (include "penstock.checks.gateway.routes" $g | fromYamlArray)
  (include "penstock.checks.gateway.pods" $g | fromYamlArray)
  (include "penstock.checks.budget" (dict "budget" $g.podDisruptionBudget "name" "gateway.podDisruptionBudget" "least" $mine.leastReplicas) | fromYamlArray)
  (include "penstock.checks.resources" (dict "resources" $g.resources "name" "gateway.resources") | fromYamlArray)
  (include "penstock.checks.service" (dict "service" $g.service "name" "gateway.service") | fromYamlArray) -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.dns) -}}
{{- $wrong = append $wrong "networkPolicy.dns: false, and the gateway looks up the service's name" -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.gateway.tls" -}}
{{- $f := .f -}}{{- $v := $f.v -}}{{- $tls := $v.gateway.tls -}}{{- $wrong := list -}}
{{- $mutual := or $v.tls.mutual (dig "tls" "client_ca_file" "" $v.config) -}}
{{- if not $f.secure -}}
{{- range $key := list "caSecret" "systemCertificates" "serverName" "clientSecret" -}}
{{- if get $tls $key -}}
{{- $wrong = append $wrong (printf "gateway.tls.%s: the service has no TLS: tls.existingSecret, tls.certManager or config.tls" $key) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if and $tls.caSecret $tls.systemCertificates -}}
{{- $wrong = append $wrong "gateway.tls.caSecret, gateway.tls.systemCertificates: two authorities for one certificate" -}}
{{- end -}}
{{- if and (not .mine.caSecret) (not $tls.systemCertificates) -}}
{{- $wrong = append $wrong "gateway.tls: with config.tls the gateway needs to know who signed the certificate: caSecret (a Secret with ca.crt), or systemCertificates: true" -}}
{{- end -}}
{{- if and $mutual (not $tls.clientSecret) -}}
{{- $wrong = append $wrong "gateway.tls.clientSecret: the service accepts only clients with a certificate (tls.mutual, or config.tls.client_ca_file)" -}}
{{- end -}}
{{- if and $tls.clientSecret (not $mutual) -}}
{{- $wrong = append $wrong "gateway.tls.clientSecret: has no effect while tls.mutual is false" -}}
{{- end -}}
{{- if and $tls.clientSecret (dig "auth" "certificates" false $v.config) -}}
{{- /* Whoever sends no key would be the caller of the gateway's certificate. */ -}}
{{- $wrong = append $wrong "config.auth.certificates: HTTP callers without a key would be taken for the gateway's certificate: identify callers by apiKeys or config.jwt" -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.gateway.routes" -}}
{{- $g := . -}}{{- $wrong := list -}}
{{- if and $g.httpRoute.enabled (not $g.httpRoute.parentRefs) -}}
{{- $wrong = append $wrong "gateway.httpRoute.parentRefs: a route needs a Gateway" -}}
{{- end -}}
{{- if and $g.ingress.enabled (not $g.ingress.hosts) -}}
{{- $wrong = append $wrong "gateway.ingress.hosts: an Ingress needs a host name" -}}
{{- end -}}
{{- range $one := $g.ingress.tls -}}
{{- range $host := $one.hosts -}}
{{- if and $g.ingress.enabled (not (has $host $g.ingress.hosts)) -}}
{{- $wrong = append $wrong (printf "gateway.ingress.tls: %s is none of gateway.ingress.hosts" $host) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $g.exposePlayground (not $g.httpRoute.enabled) (not $g.ingress.enabled) -}}
{{- $wrong = append $wrong "gateway.exposePlayground: has no effect without gateway.httpRoute.enabled or gateway.ingress.enabled" -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.gateway.pods" -}}
{{- $g := . -}}{{- $a := $g.autoscaling -}}{{- $wrong := list -}}
{{- if and $a.enabled (lt (int $a.maxReplicas) (int $a.minReplicas)) -}}
{{- $wrong = append $wrong (printf "gateway.autoscaling.maxReplicas: %d is below minReplicas, %d" (int $a.maxReplicas) (int $a.minReplicas)) -}}
{{- end -}}
{{- if and $a.enabled (not (dig "requests" "cpu" "" $g.resources)) -}}
{{- $wrong = append $wrong "gateway.resources.requests.cpu: gateway.autoscaling counts in percent of it" -}}
{{- end -}}
{{- /* Requests that are held, and 256 MiB for Python, its packages and replies. */ -}}
{{- $held := $g.limits.max_request_memory_bytes | default 536870912 | int64 -}}
{{- $memory := dig "limits" "memory" "" $g.resources | toString -}}
{{- if and $memory (gt (add $held 268435456) (include "penstock.bytes" $memory | int64)) -}}
{{- $wrong = append $wrong (printf "gateway.resources.limits.memory: %s must hold gateway.limits.max_request_memory_bytes (%d) and 256Mi" $memory $held) -}}
{{- end -}}
{{- $body := $g.limits.max_body_bytes | default 16777216 | int64 -}}
{{- if gt $body $held -}}
{{- $wrong = append $wrong (printf "gateway.limits.max_body_bytes: %d is above max_request_memory_bytes, %d" $body $held) -}}
{{- end -}}
{{- range $g.extraEnv -}}
{{- if and (hasPrefix "PENSTOCK_" .name) (ne .name "PENSTOCK_PLAYGROUND_METRICS_URL") -}}
{{- $wrong = append $wrong (printf "gateway.extraEnv: %s: the chart passes options, and callers bring their keys" .name) -}}
{{- else if and (hasKey . "value") (regexMatch "(TOKEN|SECRET|PASSWORD|_KEY)$" .name) -}}
{{- $wrong = append $wrong (printf "gateway.extraEnv: %s looks like a secret: take it from one, by valueFrom.secretKeyRef" .name) -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
