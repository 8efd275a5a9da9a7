{{/* The namespace of the agents. */}}
{{- define "hvprobe.namespace" -}}
{{ .Values.namespace.name | default .Release.Namespace }}
{{- end }}

{{/* The labels that Helm's users expect on every object. */}}
{{- define "hvprobe.helmLabels" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of the objects that every variant has. */}}
{{- define "hvprobe.labels" -}}
app.kubernetes.io/component: observability
app.kubernetes.io/part-of: kubevirt
{{ include "hvprobe.helmLabels" . }}
{{- end }}

{{- define "hvprobe.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* off, selfSigned, certManager or secret. YAML reads off without quotes as false. */}}
{{- define "hvprobe.tls" -}}
{{ ternary "off" (toString .Values.tls.mode) (eq (toString .Values.tls.mode) "false") }}
{{- end }}

{{- define "hvprobe.tlsSecret" -}}
{{ ternary .Values.tls.secret.name "hvprobe-tls" (eq (include "hvprobe.tls" .) "secret") }}
{{- end }}

{{- define "hvprobe.scraperSecret" -}}
{{ ternary .Values.tls.clientCertificates.secretName "hvprobe-scraper" (eq (include "hvprobe.tls" .) "secret") }}
{{- end }}

{{- define "hvprobe.serverName" -}}
{{ .Values.tls.serverName | default (printf "metrics.%s.svc" (include "hvprobe.namespace" .)) }}
{{- end }}

{{/* Whether clients are asked for a certificate: "true" or "". */}}
{{- define "hvprobe.clientCertificates" -}}
{{ if and (ne (include "hvprobe.tls" .) "off") .Values.tls.clientCertificates.enabled }}true{{ end }}
{{- end }}

{{/* The issuer of the agents' certificate and of Prometheus'. */}}
{{- define "hvprobe.issuerRef" -}}
{{ .Values.tls.certManager.issuerRef | default (dict "name" "hvprobe-ca" "kind" "Issuer") | toYaml }}
{{- end }}

{{/* Scheme of a probe: only where it is not the default. */}}
{{- define "hvprobe.probe" -}}
path: {{ .path }}
port: metrics
{{- if ne (include "hvprobe.tls" .root) "off" }}
scheme: HTTPS
{{- end }}
{{- end }}
