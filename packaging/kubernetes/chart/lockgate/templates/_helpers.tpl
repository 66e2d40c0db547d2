{{- define "lockgate.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "lockgate.fullname" -}}
{{- $name := include "lockgate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "lockgate.selector" -}}
app.kubernetes.io/name: {{ include "lockgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{- /* Helm adds by itself that it manages them; so the plain manifests do not say it. */}}
{{- define "lockgate.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "lockgate.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "lockgate.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{- define "lockgate.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "lockgate.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "lockgate.authSecret" -}}
{{- if .Values.auth.existingSecret }}{{ .Values.auth.existingSecret }}
{{- else if .Values.auth.passwordFile }}{{ include "lockgate.fullname" . }}-auth
{{- end }}
{{- end }}

{{- define "lockgate.hasAcl" -}}
{{- if ternary .Values.auth.acl (ne .Values.auth.aclFile "") (ne .Values.auth.existingSecret "") }}yes{{ end }}
{{- end }}

{{- /* The listeners that clients reach, as NAME: PORT */}}
{{- define "lockgate.ports" -}}
{{- range $name, $one := .Values.listeners }}
{{- if $one.enabled }}
{{ $name }}: {{ int $one.port }}
{{- end }}
{{- end }}
{{- end }}

{{- define "lockgate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1883
runAsGroup: 1883
fsGroup: 1883
# else every start would walk the whole volume
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "lockgate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* `lockgate healthcheck`, as the program that imports nothing else: called with a list of its options */}}
{{- define "lockgate.ask" -}}
exec:
  command: [/usr/local/bin/python3, -I, -S, /opt/lockgate/healthcheck.py{{ range . }}, {{ . }}{{ end }}]
timeoutSeconds: 5
{{- end }}

{{- /* A minute without an answer */}}
{{- define "lockgate.liveness" -}}
{{- include "lockgate.ask" (list "--alive") }}
periodSeconds: 15
failureThreshold: 4
{{- end }}

{{- /* What does not fit together, said before anything is made of it */}}
{{- define "lockgate.check" -}}
{{- $v := .Values -}}
{{- $ways := 0 -}}
{{- if $v.auth.existingSecret }}{{ $ways = add1 $ways }}{{ end -}}
{{- if $v.auth.passwordFile }}{{ $ways = add1 $ways }}{{ end -}}
{{- if $v.auth.anonymous }}{{ $ways = add1 $ways }}{{ end -}}
{{- if ne (int $ways) 1 }}{{ fail (printf "auth: %s. Set exactly one: auth.existingSecret (a Secret with the key passwd), auth.passwordFile (lines of mosquitto_passwd), or auth.anonymous=true, which lets everybody in" (ternary "nobody could log in" "more than one way to log in is given" (eq (int $ways) 0))) }}{{ end -}}
{{- if and $v.auth.aclFile (not $v.auth.passwordFile) }}{{ fail "auth.aclFile goes with auth.passwordFile; a Secret of your own (auth.existingSecret) has it as its key acl, with auth.acl=true" }}{{ end -}}
{{- if and $v.auth.acl (not $v.auth.existingSecret) }}{{ fail "auth.acl says that auth.existingSecret has a key acl, but there is no auth.existingSecret; accepted besides: auth.aclFile" }}{{ end -}}
{{- if not (include "lockgate.ports" .) }}{{ fail "listeners: none is enabled, so no client could come in; set listeners.mqtt.enabled=true or another" }}{{ end -}}
{{- $wantsTls := or $v.listeners.mqtts.enabled (and $v.listeners.websockets.enabled $v.listeners.websockets.tls) -}}
{{- if and $wantsTls (not $v.tls.existingSecret) }}{{ fail "tls.existingSecret: a listener speaks TLS, but no Secret has its certificate; make one: kubectl create secret tls NAME --cert FILE --key FILE" }}{{ end -}}
{{- if and $v.tls.existingSecret (not $wantsTls) }}{{ fail "tls.existingSecret: no listener would use it; set listeners.mqtts.enabled=true or listeners.websockets.tls=true" }}{{ end -}}
{{- if and $v.tls.requireCertificate (not $v.tls.ca) }}{{ fail "tls.requireCertificate: needs tls.ca=true and a key ca.crt in the Secret, to tell whose certificates count" }}{{ end -}}
{{- $taken := dict -}}
{{- if $v.metrics.enabled }}{{ $_ := set $taken (toString (int $v.metrics.port)) "metrics" }}{{ end -}}
{{- range $name, $one := $v.listeners -}}
{{- if $one.enabled -}}
{{- $port := toString (int $one.port) -}}
{{- if hasKey $taken $port }}{{ fail (printf "listeners.%s.port: %s is %s's already; each needs its own" $name $port (get $taken $port)) }}{{ end -}}
{{- $_ := set $taken $port $name -}}
{{- end -}}
{{- end -}}
{{- if $v.gateway.enabled -}}
{{- if not (regexMatch "(?m)^\\[sinks\\." $v.lockgateToml) }}{{ fail "lockgateToml: gateway.enabled needs at least one section [sinks.NAME], else nothing is forwarded; --set-file lockgateToml=FILE" }}{{ end -}}
{{- if and (not $v.gateway.processorSecret) (not $v.auth.anonymous) }}{{ fail "gateway.processorSecret: the processor needs an account; a Secret with the key url, mqtt://NAME:PASSWORD@127.0.0.1:1883, and NAME in the password file" }}{{ end -}}
{{- else if $v.gateway.processorSecret }}{{ fail "gateway.processorSecret is of no use without gateway.enabled=true" }}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled (not $v.metrics.enabled) }}{{ fail "metrics.serviceMonitor.enabled: there is nothing to read without metrics.enabled=true" }}{{ end -}}
{{- if and $v.metrics.existingSecret $v.auth.anonymous }}{{ fail "metrics.existingSecret: with auth.anonymous there are no users; leave it out" }}{{ end -}}
{{- if and (eq $v.service.type "ClusterIP") (or $v.service.nodePorts $v.service.externalTrafficPolicy) }}{{ fail "service.nodePorts and service.externalTrafficPolicy are for the types NodePort and LoadBalancer; service.type is ClusterIP" }}{{ end -}}
{{- end }}
