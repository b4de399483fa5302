{{/* Lays `over` on `base`, in place, key by key; null in `over` leaves what `base` says, so that afterwards no key has
     null and `hasKey` asks whether somebody said something. Sprig's own merges would lose
     a user's `false` and `0`. */}}
{{- define "penstock.lay" -}}
{{- $base := .base -}}
{{- range $key, $value := .over -}}
{{- if kindIs "map" $value -}}
{{- if not (kindIs "map" (get $base $key)) -}}{{- $_ := set $base $key dict -}}{{- end -}}
{{- include "penstock.lay" (dict "base" (get $base $key) "over" $value) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $base $key $value -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The values in force, as YAML: the preset below, the user's above. */}}
{{- define "penstock.values" -}}
{{- $base := dict -}}
{{- with .Values.preset -}}
{{- $file := $.Files.Get (printf "presets/%s.yaml" .) -}}
{{- if not $file -}}
{{- fail (printf "\npreset: %q is none of the files in presets/" .) -}}
{{- end -}}
{{- $base = fromYaml $file -}}
{{- end -}}
{{- include "penstock.lay" (dict "base" $base "over" .Values) -}}
{{- toYaml $base -}}
{{- end -}}

{{/* Values in force, and what the chart works out from them, as YAML. Every template starts here, so that a number has
     one origin. */}}
{{- define "penstock.facts" -}}
{{- /* Worked out once per rendering, and kept as text: whoever asks gets a copy of its own. */ -}}
{{- if not (hasKey .Values "workedOut") -}}
{{- $_ := set .Values "workedOut" (include "penstock.workOut" .) -}}
{{- end -}}
{{- .Values.workedOut -}}
{{- end -}}

{{- define "penstock.workOut" -}}
{{- $v := include "penstock.values" . | fromYaml -}}
{{- $engine := $v.config.engine | default dict -}}
{{- $extra := $engine.extra_args | default dict -}}
{{- $server := $v.config.server -}}
{{- $device := $engine.device | default "auto" -}}
{{- $gpus := 0 -}}
{{- if ne $device "cpu" -}}{{- $gpus = hasKey $v.gpu "perNode" | ternary $v.gpu.perNode 1 | int -}}{{- end -}}
{{- $tensor := $engine.tensor_parallel_size | default 0 | int -}}
{{- $data := $engine.data_parallel_size | default $extra.data_parallel_size | default 0 | int -}}
{{- $stages := $extra.pipeline_parallel_size | default $engine.pipeline_parallel_size | default 0 | int -}}
{{- $nodes := $engine.nodes | default 1 | int -}}
{{- $mounted := or $v.model.existingClaim $v.model.image | not | not -}}
{{- $modelName := $engine.model | default (ternary "/models" "" $mounted) -}}
{{- $size := $v.model.sizeGiB | default 0 | int -}}
{{- $startup := $v.probes.startup.seconds | default (add 600 (mul 10 $size)) | int -}}
{{- $drain := hasKey $server "drain_seconds" | ternary $server.drain_seconds 600.0 | ceil | int -}}{{/* the service's default */}}
{{- $least := add ($v.preStopSeconds | int) $drain 10 -}}
{{- $grace := $v.terminationGracePeriodSeconds | default (add $least 30) | int -}}
{{- $scaled := $v.autoscaling.enabled -}}
{{- $secure := or $v.tls.existingSecret $v.tls.certManager.enabled (dig "tls" "certificate_file" "" $v.config) | not | not -}}
{{- $health := $server.health_listen | default (ternary "0.0.0.0:50052" "" $secure) -}}
{{- $port := splitList ":" ($server.listen | default "127.0.0.1:50051") | last | int -}}
{{- $metrics := dig "telemetry" "prometheus_listen" "" $v.config -}}
{{- $facts := dict
  "leastReplicas" (ternary $v.autoscaling.minReplicas $v.replicaCount $scaled | int)
  "mostReplicas" (ternary $v.autoscaling.maxReplicas $v.replicaCount $scaled | int)
  "metricsPort" (splitList ":" $metrics | last | int)
  "otlpPort" (dig "telemetry" "otlp_endpoint" "" $v.config | regexFind ":[0-9]+(/|$)" | trimAll ":/" | int)
  "v" $v
  "device" $device
  "gpus" $gpus
  "tensor" $tensor
  "data" $data
  "stages" $stages
  "nodes" $nodes
  "port" $port
  "secure" $secure
  "healthListen" $health
  "probePort" (ternary (splitList ":" $health | last | int) $port (ne $health ""))
  "appProtocol" (ternary "https" "kubernetes.io/h2c" $secure)
  "redisPort" (dig "quotas" "redis_url" "" $v.config | regexFind "^rediss?://.+" | empty | ternary 0 (dig "quotas" "redis_url" "" $v.config | regexFind ":[0-9]+(/|$)" | trimAll ":/" | default "6379" | int))
  "bucketPort" ($v.model.bucket.endpoint | regexFind ":[0-9]+(/|$)" | trimAll ":/" | int)
  "fromBucket" (regexMatch "^(s3|gs|az)://" $modelName)
  "modelMounted" $mounted
  "model" $modelName
  "fromNetwork" (and $modelName (not (hasPrefix "/" $modelName)) (not $v.model.offline) | not | not)
  "startupSeconds" $startup
  "drainSeconds" $drain
  "leastGraceSeconds" $least
  "graceSeconds" $grace
  "deadlineSeconds" ($v.progressDeadlineSeconds | default (add $startup $grace 300) | int)
  "shmSize" ($v.shmSize | default (ternary "1Gi" (printf "%dGi" (mul 4 $gpus)) (eq $gpus 0)))
  "cacheSize" ($v.persistence.size | default (printf "%dGi" (add 10 (mul 2 $size))))
  "image" (include "penstock.image" (dict "image" $v.image "tag" (printf "%s-%s" .Chart.AppVersion (ternary "cpu" "gpu" (eq $device "cpu")))))
  "minor" (.Capabilities.KubeVersion.Minor | regexFind "^[0-9]+" | int)
-}}
{{- toYaml $facts -}}
{{- end -}}

{{- define "penstock.image" -}}
{{- if .image.digest -}}
{{- .image.repository }}@{{ .image.digest -}}
{{- else -}}
{{- .image.repository }}:{{ .image.tag | default .tag -}}
{{- end -}}
{{- end -}}
