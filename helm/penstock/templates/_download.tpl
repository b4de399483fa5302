{{/* Fetches the model into the cache, once for all who share it: finished files are kept, half ones gone on with. */}}
{{- define "penstock.download" -}}
{{- $f := include "penstock.facts" . | fromYaml -}}
{{- $v := $f.v -}}
name: download
image: {{ $f.image | quote }}
imagePullPolicy: {{ $v.image.pullPolicy }}
command: [penstock, download]
args:
  - --model={{ $f.model }}
  {{- with dig "engine" "revision" "" $v.config }}
  - --revision={{ . }}
  {{- end }}
  {{- if $v.model.download.verify }}
  - --verify
  {{- end }}
env:
  {{- include "penstock.env" . | nindent 2 }}
securityContext:
  {{- toYaml $v.securityContext | nindent 2 }}
resources:
  {{- toYaml $v.model.download.resources | nindent 2 }}
volumeMounts:
  - { name: cache, mountPath: /cache }
  - { name: tmp, mountPath: /tmp }
{{- end -}}
