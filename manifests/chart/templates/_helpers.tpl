{{- define "llmbudget.labels" -}}
app.kubernetes.io/name: llmbudget
app.kubernetes.io/part-of: llmbudget
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | quote }}
{{- end }}

{{- define "llmbudget.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "llmbudget.gatewayImage" -}}
{{ .Values.gatewayImage | default (include "llmbudget.image" .) }}
{{- end }}

{{- define "llmbudget.namespaces" -}}
{{ prepend .Values.namespaced.namespaces .Release.Namespace | uniq | join "," }}
{{- end }}

{{- define "llmbudget.served" -}}
{{ prepend (without .Values.namespaced.namespaces .Release.Namespace) "$(POD_NAMESPACE)" | join "," }}
{{- end }}
