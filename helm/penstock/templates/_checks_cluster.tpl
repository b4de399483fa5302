{{/* Values that contradict each other: scaling, labels and Services. */}}
{{- define "penstock.checks.cluster" -}}
{{- $v := .v -}}{{- $wrong := list -}}
{{- $a := $v.autoscaling -}}
{{- if and $a.enabled (lt (int $a.maxReplicas) (int $a.minReplicas)) -}}
{{- $wrong = append $wrong (printf "autoscaling.maxReplicas: %d is below minReplicas, %d" (int $a.maxReplicas) (int $a.minReplicas)) -}}
{{- end -}}
{{- if and $a.enabled (eq $a.by "keda") (not $a.prometheusAddress) (not $a.triggers) -}}
{{- $wrong = append $wrong "autoscaling.prometheusAddress: KEDA asks Prometheus, and does not know where it is (or give autoscaling.triggers)" -}}
{{- end -}}
{{- if and $a.enabled (eq $a.by "keda") $a.prometheusAddress (not $v.serviceMonitor.enabled) (not $v.podMonitor.enabled) -}}
{{- $wrong = append $wrong "autoscaling.by: keda asks Prometheus for this release's metrics: serviceMonitor.enabled or podMonitor.enabled" -}}
{{- end -}}
{{- if and $a.enabled (eq (int $a.minReplicas) 0) (or (eq $a.by "hpa") (not $a.triggers)) -}}
{{- $wrong = append $wrong "autoscaling.minReplicas: 0: a service without pods has no metrics that could wake it: autoscaling.by: keda, with an outside trigger in autoscaling.triggers" -}}
{{- end -}}
{{- range $key := list "triggers" "authenticationRef" "authModes" -}}
{{- if and $a.enabled (eq $a.by "hpa") (get $a $key) -}}
{{- $wrong = append $wrong (printf "autoscaling.%s: is KEDA's, and autoscaling.by is hpa" $key) -}}
{{- end -}}
{{- end -}}
{{- range $place := list "podLabels" "commonLabels" -}}
{{- range $label := keys (get $v $place | default dict) | sortAlpha -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "penstock.dev/service" "helm.sh/chart" "app.kubernetes.io/managed-by" "app.kubernetes.io/version" "app.kubernetes.io/part-of") -}}
{{- $wrong = append $wrong (printf "%s: %s is set by the chart, which selects by it" $place $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") -}}
{{- $wrong = append $wrong "service.nodePort: service.type is ClusterIP: NodePort or LoadBalancer" -}}
{{- end -}}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (get $v.service $key) (ne $v.service.type "LoadBalancer") -}}
{{- $wrong = append $wrong (printf "service.%s: service.type is %s, not LoadBalancer" $key $v.service.type) -}}
{{- end -}}
{{- end -}}
{{- if and $v.service.externalTrafficPolicy (eq $v.service.type "ClusterIP") -}}
{{- $wrong = append $wrong "service.externalTrafficPolicy: service.type is ClusterIP: NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $a.enabled (eq $a.by "hpa") (hasKey $a "targetFirstTokenSeconds") -}}
{{- $wrong = append $wrong "autoscaling.targetFirstTokenSeconds: a quantile is asked of Prometheus: autoscaling.by: keda" -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
