{{- /* The port that something listens on. Probes come from the kubelet to 127.0.0.1. */}}
{{- define "twill.port" -}}
{{- if not (regexMatch "^(127\\.0\\.0\\.1|0\\.0\\.0\\.0|\\[::\\]):[0-9]+$" (toString .)) -}}
{{- fail (printf "%q: no probe would reach it there; listen on 127.0.0.1:PORT, 0.0.0.0:PORT or [::]:PORT" (toString .)) -}}
{{- end -}}
{{- splitList ":" . | last -}}
{{- end -}}
