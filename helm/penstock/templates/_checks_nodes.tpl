{{/* Values that contradict each other: several nodes, and notice. */}}
{{- define "penstock.checks.nodes" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- $engine := $v.config.engine | default dict -}}
{{- range $key := list "node_rank" "leader_address" -}}
{{- if hasKey $engine $key -}}
{{- $wrong = append $wrong (printf "config.engine.%s: each pod is told its own by LeaderWorkerSet" $key) -}}
{{- end -}}
{{- end -}}
{{- if gt (int .nodes) 1 -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.dns) -}}
{{- $wrong = append $wrong "networkPolicy.dns: false, and the nodes of a group find their leader by its name (config.engine.nodes)" -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (hasKey $v.podDisruptionBudget "minAvailable") -}}
{{- $wrong = append $wrong "podDisruptionBudget.minAvailable: counts pods, and a replica has several: use maxUnavailable" -}}
{{- end -}}
{{- if and $v.persistence.enabled (ne $v.persistence.accessMode "ReadWriteMany") -}}
{{- $wrong = append $wrong (printf "persistence.accessMode: %s serves one node, and config.engine.nodes is %d: use ReadWriteMany" $v.persistence.accessMode (int .nodes)) -}}
{{- end -}}
{{- else if $v.leaderWorkerSet.exclusiveTopology -}}
{{- $wrong = append $wrong "leaderWorkerSet.exclusiveTopology: there is one node per replica (config.engine.nodes)" -}}
{{- end -}}
{{- if and $v.rdma.enabled (eq .device "cpu") -}}
{{- $wrong = append $wrong "rdma.enabled: carries traffic between GPUs, and config.engine.device is cpu" -}}
{{- end -}}
{{- if and (not $v.rdma.enabled) $v.rdma.networks -}}
{{- $wrong = append $wrong "rdma.networks: has no effect while rdma.enabled is false" -}}
{{- end -}}
{{- $notice := $v.spotNoticeSeconds | default 0 | int -}}
{{- if and $notice (gt (int .leastGraceSeconds) $notice) -}}
{{- $wrong = append $wrong (printf "spotNoticeSeconds: preStopSeconds (%d) + config.server.drain_seconds (%d) + 10 for the last events do not fit into a notice of %d" (int $v.preStopSeconds) (int .drainSeconds) $notice) -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
