{{/* Lays `over` on `base`, in place, key by key; null in `over` leaves what `base` says. Sprig's own merges would lose
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

{{/* The values in force, as YAML: the chart's defaults at the bottom, then the preset, then the user's. The defaults are laid
     once more because Helm removes a section that the user sets to null, and null means "the default" here. */}}
{{- define "penstock.values" -}}
{{- $base := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- /* In `config` and in security contexts a key that the user set to null is taken back: nothing is said of it. */ -}}
{{- range $section, $keys := .Values.config -}}
{{- if kindIs "map" $keys -}}{{- $_ := set $base.config $section dict -}}{{- end -}}
{{- end -}}
{{- range $section := list "podSecurityContext" "securityContext" -}}
{{- if kindIs "map" (get $.Values $section) -}}{{- $_ := set $base $section dict -}}{{- end -}}
{{- end -}}
{{- with .Values.preset -}}
{{- $file := $.Files.Get (printf "presets/%s.yaml" .) -}}
{{- if not $file -}}
{{- fail (printf "\npreset: %q is none of the files in presets/" .) -}}
{{- end -}}
{{- include "penstock.lay" (dict "base" $base "over" (fromYaml $file)) -}}
{{- end -}}
{{- include "penstock.lay" (dict "base" $base "over" .Values) -}}
{{- include "penstock.withoutNulls" $base -}}
{{- toYaml $base -}}
{{- end -}}

{{/* Removes the keys that nobody has set, in place, so that `hasKey` asks whether somebody said something. */}}
{{- define "penstock.withoutNulls" -}}
{{- $map := . -}}
{{- range $key, $value := . -}}
{{- if kindIs "invalid" $value -}}{{- $_ := unset $map $key -}}
{{- else if kindIs "map" $value -}}{{- include "penstock.withoutNulls" $value -}}
{{- end -}}
{{- end -}}
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
{{- $known := dict "Qwen/Qwen3.5-397B-A17B-FP8" 400 "Qwen/Qwen3.5-35B-A3B-FP8" 38 -}}
{{- $sizeKnown := or (hasKey $v.model "sizeGiB") (hasKey $known $modelName) -}}
{{- $size := hasKey $v.model "sizeGiB" | ternary $v.model.sizeGiB (get $known $modelName | default 0) | int -}}
{{- $startup := $v.probes.startup.seconds | default (add 600 (mul 10 $size)) | int -}}
{{- $drain := hasKey $server "drain_seconds" | ternary $server.drain_seconds 600.0 | ceil | int -}}{{/* the service's default */}}
{{- $least := add ($v.preStopSeconds | int) $drain 10 -}}
{{- $grace := $v.terminationGracePeriodSeconds | default (add $least 30) | int -}}
{{- $scaled := $v.autoscaling.enabled -}}
{{- $secure := or $v.tls.existingSecret $v.tls.certManager.enabled (dig "tls" "certificate_file" "" $v.config) | not | not -}}
{{- /* Always a listener of its own: it speaks no TLS, as probes need it, and calls cannot crowd probes out. */ -}}
{{- $health := $server.health_listen | default "[::]:50052" -}}
{{- $port := splitList ":" ($server.listen | default "127.0.0.1:50051") | last | int -}}
{{- $metrics := dig "telemetry" "prometheus_listen" "" $v.config -}}
{{- $facts := dict
  "leastReplicas" (ternary $v.autoscaling.minReplicas $v.replicaCount $scaled | int)
  "mostReplicas" (ternary $v.autoscaling.maxReplicas $v.replicaCount $scaled | int)
  "metricsPort" (splitList ":" $metrics | last | int)
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
  "probePort" (splitList ":" $health | last | int)
  "appProtocol" (ternary "https" "kubernetes.io/h2c" $secure)
  "fromBucket" (regexMatch "^(s3|gs|az)://" $modelName)
  "modelMounted" $mounted
  "model" $modelName
  "fromNetwork" (and $modelName (not (hasPrefix "/" $modelName)) (not $v.model.offline) | not | not)
  "sizeKnown" $sizeKnown
  "sizeGiB" $size
  "startupSeconds" $startup
  "drainSeconds" $drain
  "leastGraceSeconds" $least
  "graceSeconds" $grace
  "deadlineSeconds" ($v.progressDeadlineSeconds | default (add $startup $grace 300) | int)
  "shmSize" ($v.shmSize | default (ternary "1Gi" (printf "%dGi" (mul 4 $gpus)) (eq $gpus 0)))
  "cacheSize" ($v.persistence.size | default (printf "%dGi" (add 10 (mul 2 $size))))
  "image" (include "penstock.image" (dict "global" ($v.global | default dict) "registry" $v.image.registry "image" $v.image "tag" (printf "%s-%s" .Chart.AppVersion (ternary "cpu" "gpu" (eq $device "cpu")))))
  "minor" (.Capabilities.KubeVersion.Minor | regexFind "^[0-9]+" | int)
-}}
{{- toYaml $facts -}}
{{- end -}}

{{/* `global.imageRegistry`, else `registry`, replaces the registry of the repository, or is put in front where it names none. */}}
{{- define "penstock.image" -}}
{{- $repository := .image.repository -}}
{{- with .global.imageRegistry | default .registry -}}
{{- $parts := splitList "/" $repository -}}
{{- if and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) -}}{{- $parts = rest $parts -}}{{- end -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (join "/" $parts) -}}
{{- end -}}
{{- if .image.digest -}}
{{- $repository }}@{{ .image.digest -}}
{{- else -}}
{{- $repository }}:{{ .image.tag | default .tag -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a Kubernetes quantity. */}}
{{- define "penstock.bytes" -}}
{{- $units := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (hasKey $units $unit | ternary (get $units $unit) 1.0) | floor | int64 -}}
{{- end -}}

{{/* `replicas: N`. With an autoscaler nothing is said of a workload that is not there yet; of one that is, the count that it
     has: Helm would patch a count that was given before to null, which Kubernetes reads as one. */}}
{{- define "penstock.replicas" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
{{- if not $v.autoscaling.enabled -}}
replicas: {{ int $v.replicaCount }}
{{- else -}}
{{- $workload := include "penstock.workload" . | fromYaml -}}
{{- $live := lookup $workload.apiVersion $workload.kind (include "penstock.namespace" .) $workload.name -}}
{{- if and $live (hasKey $live.spec "replicas") -}}
replicas: {{ max (int $live.spec.replicas) (int $v.autoscaling.minReplicas) }}
{{- end -}}
{{- end -}}
{{- end -}}
