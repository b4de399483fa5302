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
{{- range $place, $labels := dict "podLabels" $v.podLabels "commonLabels" $v.commonLabels "gateway.podLabels" $v.gateway.podLabels -}}
{{- range $label := keys ($labels | default dict) | sortAlpha -}}
{{- if has $label (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "penstock.dev/service" "helm.sh/chart" "app.kubernetes.io/managed-by" "app.kubernetes.io/version" "app.kubernetes.io/part-of") -}}
{{- $wrong = append $wrong (printf "%s: %s is set by the chart, which selects by it" $place $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $wrong = concat $wrong (include "penstock.checks.service" (dict "service" $v.service "name" "service") | fromYamlArray) -}}
{{- if and $v.service.externalTrafficPolicy (eq $v.service.type "ClusterIP") -}}
{{- $wrong = append $wrong "service.externalTrafficPolicy: service.type is ClusterIP: NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $a.enabled (eq $a.by "hpa") (hasKey $a "targetFirstTokenSeconds") -}}
{{- $wrong = append $wrong "autoscaling.targetFirstTokenSeconds: a quantile is asked of Prometheus: autoscaling.by: keda" -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{/* What holds for the service's objects and for the gateway's: dicts of the section and its `name`. */}}
{{- define "penstock.checks.service" -}}
{{- $wrong := list -}}
{{- if and .service.nodePort (eq .service.type "ClusterIP") -}}
{{- $wrong = append $wrong (printf "%s.nodePort: %s.type is ClusterIP: NodePort or LoadBalancer" .name .name) -}}
{{- end -}}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (get $.service $key) (ne $.service.type "LoadBalancer") -}}
{{- $wrong = append $wrong (printf "%s.%s: %s.type is %s, not LoadBalancer" $.name $key $.name $.service.type) -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{/* Also takes `least`, the fewest replicas. */}}
{{- define "penstock.checks.budget" -}}
{{- $p := .budget -}}{{- $wrong := list -}}
{{- if and $p.enabled (hasKey $p "minAvailable") (regexMatch "^[0-9]+$" (toString $p.minAvailable)) (ge (int $p.minAvailable) (int .least)) (gt (int .least) 0) -}}
{{- $wrong = append $wrong (printf "%s.minAvailable: %d of %d replicas: no node could ever be emptied" .name (int $p.minAvailable) (int .least)) -}}
{{- end -}}
{{- if and $p.enabled (eq (toString $p.minAvailable) "100%") -}}
{{- $wrong = append $wrong (printf "%s.minAvailable: 100%% of the pods must stay: no node could ever be emptied" .name) -}}
{{- end -}}
{{- if and $p.enabled (not (hasKey $p "minAvailable")) (has (toString $p.maxUnavailable) (list "0" "0%")) -}}
{{- $wrong = append $wrong (printf "%s.maxUnavailable: 0: no node could ever be emptied" .name) -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}

{{- define "penstock.checks.resources" -}}
{{- $wrong := list -}}
{{- range $side := list "requests" "limits" -}}
{{- range $name, $amount := get $.resources $side | default dict -}}
{{- if and (has $name (list "memory" "ephemeral-storage")) (hasSuffix "m" (toString $amount)) -}}
{{- $wrong = append $wrong (printf "%s.%s.%s: %v is a thousandth of bytes: Mi or Gi" $.name $side $name $amount) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $limit := .resources.limits | default dict -}}
{{- $wanted := dig "requests" $name "" $.resources -}}
{{- if and $wanted (has $name (list "memory" "ephemeral-storage")) (gt (include "penstock.bytes" $wanted | int64) (include "penstock.bytes" $limit | int64)) -}}
{{- $wrong = append $wrong (printf "%s.requests.%s: %v is above the limit of %v" $.name $name $wanted $limit) -}}
{{- end -}}
{{- end -}}
{{- toYaml $wrong -}}
{{- end -}}
