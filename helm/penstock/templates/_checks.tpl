{{/* What a schema cannot say: values that contradict each other. All of them are told at once, each by its name. */}}
{{- define "penstock.checks" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $wrong := concat
  (include "penstock.checks.life" $f | fromYamlArray)
  (include "penstock.checks.shape" $f | fromYamlArray)
  (include "penstock.checks.nodes" $f | fromYamlArray)
  (include "penstock.checks.model" $f | fromYamlArray)
  (include "penstock.checks.callers" $f | fromYamlArray)
  (include "penstock.checks.cluster" $f | fromYamlArray)
  (include "penstock.checks.gateway" (dict "f" $f "root" .) | fromYamlArray)
  (include "penstock.checks.rest" (dict "f" $f "root" .) | fromYamlArray) -}}
{{- if $wrong -}}
{{- fail (printf "\n\nThese values cannot work:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}

{{- define "penstock.checks.life" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- if lt (int .graceSeconds) (int .leastGraceSeconds | add1 | int) -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds: %d must be above preStopSeconds (%d) + config.server.drain_seconds (%d) + 10 for the last events" (int .graceSeconds) (int $v.preStopSeconds) (int .drainSeconds)) -}}
{{- end -}}
{{- if le (int .deadlineSeconds) (int .startupSeconds) -}}
{{- $wrong = append $wrong (printf "progressDeadlineSeconds: %d must be above the startup budget of %d s, or a slow load counts as a failed update" (int .deadlineSeconds) (int .startupSeconds)) -}}
{{- end -}}
{{- $u := $v.updateStrategy -}}
{{- if and (hasKey $u "maxSurge") (hasKey $u "maxUnavailable") (has (toString $u.maxSurge) (list "0" "0%")) (has (toString $u.maxUnavailable) (list "0" "0%")) -}}
{{- $wrong = append $wrong "updateStrategy: maxSurge 0 and maxUnavailable 0 leave no way to replace a pod" -}}
{{- end -}}
{{- $budget := dict "budget" $v.podDisruptionBudget "name" "podDisruptionBudget" "least" .leastReplicas -}}
{{- $wrong = concat $wrong (include "penstock.checks.budget" $budget | fromYamlArray) -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.shape" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- $engine := $v.config.engine | default dict -}}
{{- $extra := $engine.extra_args | default dict -}}
{{- if eq .device "auto" -}}
{{- $wrong = append $wrong "config.engine.device: say cpu or gpu: the chart must know whether to ask for GPUs" -}}
{{- end -}}
{{- if eq ($engine.kind | default "vllm") "scripted" -}}
{{- $wrong = append $wrong "config.engine.kind: scripted plays canned tokens; it is for client tests, not for clusters" -}}
{{- end -}}
{{- if eq .device "cpu" -}}
{{- if and $v.gpu.perNode (gt (int $v.gpu.perNode) 0) -}}
{{- $wrong = append $wrong (printf "gpu.perNode: %d GPUs with config.engine.device: cpu" (int $v.gpu.perNode)) -}}
{{- end -}}
{{- if $v.gpu.resourceClaimTemplate -}}
{{- $wrong = append $wrong "gpu.resourceClaimTemplate: asks for GPUs with config.engine.device: cpu" -}}
{{- end -}}
{{- $memory := dig "limits" "memory" "" ($v.resources | default dict) | toString -}}
{{- if and $memory (ge (mulf ($engine.kv_cache_gib | default 1.0 | float64) 1073741824.0) (include "penstock.bytes" $memory | float64)) -}}
{{- $wrong = append $wrong (printf "config.engine.kv_cache_gib: %v GiB do not fit into resources.limits.memory: %s" ($engine.kv_cache_gib | default 1.0) $memory) -}}
{{- end -}}
{{- else -}}
{{- /* What is not said, the service plans by itself over the GPUs that it sees. */ -}}
{{- $all := mul .gpus .nodes | int -}}
{{- $said := mul (max 1 .tensor) (max 1 .data) (max 1 .stages) | int -}}
{{- $whole := and .tensor .data -}}
{{- if or (eq $all 0) (and $whole (ne $said $all)) (and (gt $all 0) (ne (mod $all $said) 0)) -}}
{{- $sizes := list -}}
{{- range $key := list "tensor" "data" "stages" -}}{{- $sizes = append $sizes (get $ $key | int | default "unset" | toString) -}}{{- end -}}
{{- $wrong = append $wrong (printf "gpu.perNode: %d GPUs on %d node(s) cannot be shared out by config.engine.tensor_parallel_size (%s) x data_parallel_size (%s) x pipeline_parallel_size or extra_args.pipeline_parallel_size (%s)" (int .gpus) (int .nodes) (index $sizes 0) (index $sizes 1) (index $sizes 2)) -}}
{{- end -}}
{{- end -}}
{{- with dig "limits" "memory" "" ($v.resources | default dict) -}}
{{- if ge (include "penstock.bytes" $.shmSize | int64) (include "penstock.bytes" . | int64) -}}
{{- $wrong = append $wrong (printf "shmSize: /dev/shm counts as memory of the container, and %s does not fit into resources.limits.memory: %v" $.shmSize .) -}}
{{- end -}}
{{- end -}}
{{- $resources := dict "resources" ($v.resources | default dict) "name" "resources" -}}
{{- $wrong = concat $wrong (include "penstock.checks.resources" $resources | fromYamlArray) -}}
{{- range $key := list "nnodes" "node_rank" "master_addr" "master_port" -}}
{{- if hasKey $extra $key -}}
{{- $wrong = append $wrong (printf "config.engine.extra_args.%s: say config.engine.nodes, the chart places the pods" $key) -}}
{{- end -}}
{{- end -}}
{{- range $side := list "requests" "limits" -}}
{{- if hasKey (get ($v.resources | default dict) $side | default dict) $v.gpu.resourceName -}}
{{- $wrong = append $wrong (printf "resources.%s: GPUs are asked for by gpu.perNode, not by %s here" $side $v.gpu.resourceName) -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.model" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- if and $v.model.existingClaim $v.model.image -}}
{{- $wrong = append $wrong "model.existingClaim, model.image: two sources for one /models" -}}
{{- end -}}
{{- if and .modelMounted (ne .model "/models") (not (hasPrefix "/models/" .model)) -}}
{{- $wrong = append $wrong (printf "config.engine.model: %q, but the mounted model is at /models" .model) -}}
{{- end -}}
{{- if and $v.model.subPath (not $v.model.existingClaim) -}}
{{- $wrong = append $wrong "model.subPath: belongs to model.existingClaim" -}}
{{- end -}}
{{- if and (eq .device "gpu") (not .model) -}}
{{- $wrong = append $wrong "config.engine.model: a GPU shape needs a model: name one, or mount one by model.existingClaim or model.image" -}}
{{- end -}}
{{- if and $v.model.image (lt (int .minor) 31) -}}
{{- $wrong = append $wrong (printf "model.image: image volumes need Kubernetes 1.31, this is 1.%d" (int .minor)) -}}
{{- end -}}
{{- if and .model (not (hasPrefix "/" .model)) $v.model.offline (not $v.persistence.enabled) -}}
{{- $wrong = append $wrong (printf "model.offline: nothing could bring %q: no cache persists (persistence.enabled) and none is mounted" .model) -}}
{{- end -}}
{{- if and .fromNetwork (not .fromBucket) (not .sizeKnown) -}}
{{- $wrong = append $wrong (printf "model.sizeGiB: say how large the weights of %s are (GiB on disk): the cache and the startup budget follow from it" .model) -}}
{{- end -}}
{{- if and $v.persistence.enabled (ne $v.persistence.accessMode "ReadWriteMany") (gt (int .mostReplicas) 1) -}}
{{- $wrong = append $wrong (printf "persistence.accessMode: %s serves one node, and there may be %d replicas: use ReadWriteMany" $v.persistence.accessMode (int .mostReplicas)) -}}
{{- end -}}
{{- $surge := toString ($v.updateStrategy.maxSurge | default 0) -}}
{{- if and $v.persistence.enabled (ne $v.persistence.accessMode "ReadWriteMany") (not (has $surge (list "0" "0%"))) -}}
{{- $wrong = append $wrong (printf "updateStrategy.maxSurge: %s: the pod on top would wait for the %s cache of the one it replaces" $surge $v.persistence.accessMode) -}}
{{- end -}}
{{- $d := $v.model.download -}}
{{- if $d.enabled -}}
{{- if or (not .model) .modelMounted .fromBucket (hasPrefix "/" .model) -}}
{{- $wrong = append $wrong (printf "model.download.enabled: config.engine.model is %q, and only Hugging Face names are downloaded" .model) -}}
{{- end -}}
{{- if $v.model.offline -}}
{{- $wrong = append $wrong "model.download.enabled: not with model.offline" -}}
{{- end -}}
{{- if and (eq $d.by "job") (not $v.persistence.existingClaim) -}}
{{- $wrong = append $wrong "model.download.by: job: runs before the release's own claim exists, and needs persistence.existingClaim" -}}
{{- end -}}
{{- end -}}
{{- if and (or $v.model.bucket.existingSecret $v.model.bucket.endpoint) (not .fromBucket) -}}
{{- $wrong = append $wrong (printf "model.bucket: config.engine.model is %q, and not in s3://, gs:// or az://" .model) -}}
{{- end -}}
{{- if and $v.persistence.existingClaim (not $v.persistence.enabled) -}}
{{- $wrong = append $wrong "persistence.existingClaim: has no effect while persistence.enabled is false" -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.rest" -}}
{{- $f := .f -}}{{- $v := $f.v -}}{{- $wrong := list -}}
{{- $server := $v.config.server -}}
{{- $listen := $server.listen | default "127.0.0.1:50051" -}}
{{- if regexMatch "^(127\\.|localhost|\\[::1\\])" $listen -}}
{{- $wrong = append $wrong (printf "config.server.listen: %s is loopback: neither probes nor callers reach it" $listen) -}}
{{- end -}}
{{- if or (lt (int $f.port) 1024) (gt (int $f.port) 65535) -}}
{{- $wrong = append $wrong (printf "config.server.listen: port %d: must be 1024 to 65535, known beforehand and open to a process without rights" (int $f.port)) -}}
{{- end -}}
{{- range $key, $port := dict "config.telemetry.prometheus_listen" $f.metricsPort "config.server.health_listen" $f.probePort -}}
{{- if and $port (or (lt (int $port) 1024) (gt (int $port) 65535)) -}}
{{- $wrong = append $wrong (printf "%s: port %d: must be 1024 to 65535" $key (int $port)) -}}
{{- end -}}
{{- end -}}
{{- range include "penstock.egressPorts" $f | fromYamlArray -}}
{{- if or (lt (int .) 1) (gt (int .) 65535) -}}
{{- $wrong = append $wrong (printf "port %s in an address of config, model.bucket or extraEnv: must be 1 to 65535" (toString .)) -}}
{{- end -}}
{{- end -}}
{{- if and (not $server.insecure) (not $f.secure) -}}
{{- $wrong = append $wrong "config.server.insecure: false, and there is no certificate (tls): the service would not start" -}}
{{- end -}}
{{- if and $v.resumeKey.existingSecret (dig "resume" "key_file" "" $v.config) -}}
{{- $wrong = append $wrong "config.resume.key_file: resumeKey.existingSecret sets it" -}}
{{- end -}}
{{- if eq (include "penstock.fullname" .root) "vllm" -}}
{{- $wrong = append $wrong "fullnameOverride: a Service of the name `vllm` gives pods VLLM_PORT, which vLLM takes for its own" -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if hasPrefix "PENSTOCK_" .name -}}
{{- $wrong = append $wrong (printf "extraEnv: %s would silently beat the file: say it in config" .name) -}}
{{- else if has .name (list "HOME" "XDG_CACHE_HOME" "VLLM_CACHE_ROOT" "HF_HOME" "HF_HUB_OFFLINE" "HF_TOKEN") -}}
{{- $wrong = append $wrong (printf "extraEnv: %s is set by the chart" .name) -}}
{{- else if and (hasKey . "value") (regexMatch "(TOKEN|SECRET|PASSWORD|_KEY)$" .name) -}}
{{- $wrong = append $wrong (printf "extraEnv: %s looks like a secret: take it from one, by valueFrom.secretKeyRef" .name) -}}
{{- end -}}
{{- end -}}
{{- range $v.extraArgs -}}
{{- if regexMatch "^--(config|set|listen|model|device|insecure|engine-kind)(=|$)" . -}}
{{- $wrong = append $wrong (printf "extraArgs: %s would beat the file: say it in config" .) -}}
{{- end -}}
{{- end -}}
{{- $metricsListen := dig "telemetry" "prometheus_listen" "" $v.config -}}
{{- if regexMatch "^(127\\.|localhost|\\[::1\\]|:)" $metricsListen -}}
{{- range $wants := list "autoscaling" "serviceMonitor" "podMonitor" "prometheusRule" "inferencePool" -}}
{{- if (get $v $wants).enabled -}}
{{- $wrong = append $wrong (printf "config.telemetry.prometheus_listen: %s is loopback, and %s.enabled needs the metrics from outside" $metricsListen $wants) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "^(127\\.|localhost|\\[::1\\])" $f.healthListen -}}
{{- $wrong = append $wrong (printf "config.server.health_listen: %s is loopback: probes come from the node" $f.healthListen) -}}
{{- end -}}
{{- if and $v.inferencePool.enabled (not $v.inferencePool.endpointPicker.name) -}}
{{- $wrong = append $wrong "inferencePool.endpointPicker.name: a pool needs a picker" -}}
{{- end -}}
{{- if and $v.inferencePool.enabled $f.secure -}}
{{- $wrong = append $wrong "inferencePool.enabled: gateways reach its pods in plaintext, and tls is on" -}}
{{- end -}}
{{- range $wants := list "autoscaling" "serviceMonitor" "podMonitor" "prometheusRule" "inferencePool" -}}
{{- if and (get $v $wants).enabled (not $f.metricsPort) -}}
{{- $wrong = append $wrong (printf "config.telemetry.prometheus_listen: is empty, and %s.enabled needs the metrics" $wants) -}}
{{- end -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.service.headless.enabled) -}}
{{- $wrong = append $wrong "serviceMonitor.enabled: scrapes the headless Service: service.headless.enabled" -}}
{{- end -}}
{{- if and $f.metricsPort (eq (int $f.metricsPort) (int $f.port)) -}}
{{- $wrong = append $wrong (printf "config.telemetry.prometheus_listen: port %d is server.listen's" (int $f.port)) -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled $f.secure (not $v.grpcRoute.backendTls.caConfigMap) (not $v.grpcRoute.backendTls.systemCertificates) -}}
{{- $wrong = append $wrong "grpcRoute.backendTls: with TLS on, the gateway needs to know who signed the certificate: caConfigMap (a ConfigMap with ca.crt), or systemCertificates: true" -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) -}}
{{- $wrong = append $wrong "grpcRoute.parentRefs: a route needs a Gateway" -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
