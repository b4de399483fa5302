{{/* The alert rules, each for this release alone: `job` and `namespace` of its monitor are added to every metric that a rule
     asks for. files/rules.yml itself is for a Prometheus that scrapes nothing else of that name. */}}
{{- define "penstock.rules" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $name := include "penstock.fullname" . -}}
{{- $namespace := include "penstock.namespace" . -}}
{{- /* A ServiceMonitor's series have the Service's name as job, a PodMonitor's `namespace/name`. */ -}}
{{- $scope := printf "namespace=%q,job=~%q" $namespace (printf "%s-headless|%s/%s" $name $namespace $name) -}}
{{- $metric := "\\b((?:penstock|gen_ai|rpc|vllm)[a-z_:]*_[a-z_:]+[a-z])" -}}
{{- $rules := .Files.Get "files/rules.yml" | fromYaml -}}
{{- range $group := $rules.groups -}}
{{- $kept := list -}}
{{- range $rule := $group.rules -}}
{{- $expr := regexReplaceAll "\\bup\\{[^}]*\\}" $rule.expr (printf "up{%s}" $scope) -}}
{{- $expr = regexReplaceAll (printf "%s\\{" $metric) $expr (printf "${1}{%s," $scope) -}}
{{- $expr = regexReplaceAll (printf "%s([^a-z_:{=!]|$)" $metric) $expr (printf "${1}{%s}${2}" $scope) -}}
{{- $_ := set $rule "expr" $expr -}}
{{- if eq $rule.alert "PenstockLoadsTooLong" -}}{{- $_ := set $rule "for" (printf "%ds" (int $f.startupSeconds)) -}}{{- end -}}
{{- with $f.v.prometheusRule.runbookUrl -}}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s#%s" (trimSuffix "#" .) (lower $rule.alert)) -}}
{{- end -}}
{{- if not (and (eq $rule.alert "PenstockAbsent") (eq (int $f.leastReplicas) 0)) -}}{{- $kept = append $kept $rule -}}{{- end -}}
{{- end -}}
{{- $_ := set $group "rules" $kept -}}
{{- end -}}
{{- toYaml $rules -}}
{{- end -}}
