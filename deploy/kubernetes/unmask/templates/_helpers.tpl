{{/* The name of everything. It always contains "unmask", by which the alerts know their target. */}}
{{- define "unmask.name" -}}
{{- contains "unmask" .Release.Name | ternary .Release.Name (printf "%s-unmask" .Release.Name) -}}
{{- end -}}

{{- define "unmask.selector" -}}
app.kubernetes.io/name: unmask
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "unmask.metadata" -}}
name: {{ include "unmask.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "unmask.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "unmask.image" -}}
{{- $tag := printf ":%s" (.Values.image.tag | default .Chart.AppVersion) -}}
{{- .Values.image.repository -}}{{- .Values.image.digest | empty | ternary $tag (printf "@%s" .Values.image.digest) -}}
{{- end -}}

{{/* Whole numbers of a values file are floats to Helm: 7776000 would become 7.776e+06. */}}
{{- define "unmask.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{/* Nothing of the image can be written to, and a process cannot become more than it is. */}}
{{- define "unmask.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* The files of the ConfigMap: the program that fetches a bundle, and the experiment. */}}
{{- define "unmask.files" -}}
{{- if .Values.bundle.url }}
fetch_bundle.py: |
  {{- .Files.Get "files/fetch_bundle.py" | nindent 2 }}
{{- end }}
{{- with .Values.experiment }}
experiment.toml: |
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What a schema cannot say in a sentence. */}}
{{- define "unmask.check" -}}
{{- $b := .Values.bundle -}}
{{- if gt (len (compact (list $b.image $b.url $b.claim))) 1 -}}
{{- fail "bundle.image, bundle.url and bundle.claim are three places for a bundle: set one" -}}
{{- end -}}
{{- if ne (empty $b.url) (empty $b.sha256) -}}
{{- fail "bundle.url and bundle.sha256 go together: what is fetched must be what was meant" -}}
{{- end -}}
{{- $n := .Values.nightly -}}
{{- if and $n.enabled (not (and $b.claim $n.dataClaim $n.runsClaim)) -}}
{{- fail "nightly needs bundle.claim, nightly.dataClaim and nightly.runsClaim" -}}
{{- end -}}
{{- if and $n.enabled (contains "@" $b.name) -}}
{{- fail "nightly promotes versions of a name: set bundle.name without a version" -}}
{{- end -}}
{{- $a := .Values.autoscaling -}}
{{- if and $a.enabled (not $a.cpuUtilization) (not $a.queueRequests) -}}
{{- fail "autoscaling needs autoscaling.cpuUtilization, autoscaling.queueRequests, or both" -}}
{{- end -}}
{{- if gt (int $a.minReplicas) (int $a.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
