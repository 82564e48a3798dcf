{{- /* A value that there is no doing without is not there. The argument is its name. */}}
{{- define "twill.unset" -}}
{{ . }} has no value. An upgrade with --reuse-values leaves out what this chart has and the last one had not: take --reset-then-reuse-values
{{- end -}}
{{- /* The port that something listens on. Probes come from the kubelet to 127.0.0.1. */}}
{{- define "twill.port" -}}
{{- if not (regexMatch "^(127\\.0\\.0\\.1|0\\.0\\.0\\.0|\\[::\\]):[0-9]+$" (toString .)) -}}
{{- fail (printf "%q: no probe would reach it there; listen on 127.0.0.1:PORT, 0.0.0.0:PORT or [::]:PORT" (toString .)) -}}
{{- end -}}
{{- splitList ":" . | last -}}
{{- end -}}
