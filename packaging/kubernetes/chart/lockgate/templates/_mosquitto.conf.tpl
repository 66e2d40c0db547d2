{{- /* Who comes in through the listener above */}}
{{- define "lockgate.conf.who" -}}
{{- if .Values.auth.anonymous }}
allow_anonymous true
{{- else }}
password_file /mosquitto/auth/passwd
{{- if include "lockgate.hasAcl" . }}
acl_file /mosquitto/auth/acl
{{- end }}
{{- end }}
{{- end }}

{{- define "lockgate.conf.tls" -}}
certfile /mosquitto/tls/tls.crt
keyfile /mosquitto/tls/tls.key
{{- if .Values.tls.ca }}
cafile /mosquitto/tls/ca.crt
{{- end }}
{{- if .Values.tls.requireCertificate }}
require_certificate true
{{- end }}
{{- end }}

{{- define "lockgate.mosquitto.conf" -}}
# Made by the chart: its values `listeners`, `auth`, `tls`, `metrics` and `mosquittoConf`.
per_listener_settings true
persistence true
log_dest stderr
{{- with .Values.mosquittoConf }}
{{ . | trim }}
{{- end }}
{{- with .Values.listeners }}
{{- if or .mqtt.enabled $.Values.gateway.enabled }}

listener {{ int .mqtt.port }}{{ if not .mqtt.enabled }} 127.0.0.1{{ end }}
{{- include "lockgate.conf.who" $ }}
{{- end }}
{{- if .mqtts.enabled }}

listener {{ int .mqtts.port }}
{{ include "lockgate.conf.tls" $ }}
{{- include "lockgate.conf.who" $ }}
{{- end }}
{{- if .websockets.enabled }}

listener {{ int .websockets.port }}
protocol websockets
{{- if .websockets.tls }}
{{ include "lockgate.conf.tls" $ }}
{{- end }}
{{- include "lockgate.conf.who" $ }}
{{- end }}
{{- end }}
{{- with .Values.metrics }}
{{- if .enabled }}

listener {{ int .port }}
protocol http_api
{{- if .existingSecret }}
{{- include "lockgate.conf.who" $ }}
{{- else }}
allow_anonymous true
{{- end }}
{{- end }}
{{- end }}
{{- end }}
