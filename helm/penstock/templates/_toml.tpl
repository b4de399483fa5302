{{/* One value as TOML. JSON's scalars and lists are TOML's; tables differ, and null has no spelling: such keys go. */}}
{{- define "penstock.toml.value" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $name := ternary $key (toRawJson $key) (regexMatch "^[A-Za-z0-9_-]+$" $key) -}}
{{- $pairs = append $pairs (printf "%s = %s" $name (include "penstock.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{ {{ join ", " $pairs }} }
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}{{- $items = append $items (include "penstock.toml.value" .) -}}{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{/* The service's configuration file: the values' `config`, and the few keys that follow from other values. */}}
{{- define "penstock.toml" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $config := $f.v.config -}}
{{- $engine := merge (dict "device" $f.device) ($config.engine | default dict) -}}
{{- if $f.model -}}{{- $_ := set $engine "model" $f.model -}}{{- end -}}
{{- $_ := set $config "engine" $engine -}}
{{- if and $f.secure (not $f.v.config.tls) -}}
{{- $tls := dict "certificate_file" "/etc/penstock/tls/tls.crt" "key_file" "/etc/penstock/tls/tls.key" -}}
{{- if $f.v.tls.mutual -}}{{- $_ := set $tls "client_ca_file" (ternary "/etc/penstock/client-ca/ca.crt" "/etc/penstock/tls/ca.crt" (ne $f.v.tls.clientCaSecret "")) -}}{{- end -}}
{{- $_ := set $config "tls" $tls -}}
{{- end -}}
{{- if $f.secure -}}{{- $_ := set $config.server "insecure" false -}}{{- end -}}
{{- if $f.healthListen -}}{{- $_ := set $config.server "health_listen" $f.healthListen -}}{{- end -}}
{{- $auth := $config.auth | default dict -}}
{{- if $f.v.apiKeys.existingSecret -}}{{- $auth = merge (dict "keys_file" "/etc/penstock/keys/keys.json") $auth -}}{{- end -}}
{{- if $f.v.callers.existingConfigMap -}}{{- $auth = merge (dict "callers_file" "/etc/penstock/callers/callers.toml") $auth -}}{{- end -}}
{{- if $f.v.redisPassword.existingSecret -}}
{{- $_ := set $config "quotas" (merge (dict "redis_password_file" "/etc/penstock/redis/password") ($config.quotas | default dict)) -}}
{{- end -}}
{{- if $auth -}}{{- $_ := set $config "auth" $auth -}}{{- end -}}
{{- if $f.v.resumeKey.existingSecret -}}
{{- $_ := set $config "resume" (merge (dict "key_file" "/etc/penstock/resume/key") ($config.resume | default dict)) -}}
{{- end -}}
{{- range $section, $keys := $config -}}
{{- if $keys }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "penstock.toml.value" $value }}
{{- end }}
{{- end }}
{{ end -}}
{{- end -}}
{{- end -}}
