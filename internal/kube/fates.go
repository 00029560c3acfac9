package kube

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A fate says what becomes of a field.
type fate int

const (
	honoured fate = iota // mapped, or refused where it can't be
	hint                 // for schedulers and controllers: a warning says that it has no effect
	note                 // what a cluster wrote down, or only a cluster could use: not looked at
	refused              // not supported, by name
)

// A rule is the fate of one field. Values that ask for nothing are taken
// whatever the fate: null, "", false, 0, an empty list, and those in harmless.
type rule struct {
	fate     fate
	why      string
	harmless []string
}

func (r rule) isHarmless(n *yaml.Node, t reflect.Type) bool {
	if t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Bool {
		t = t.Elem()
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return true
	case n.Kind == yaml.ScalarNode && slices.Contains(r.harmless, n.Value):
		return true
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Map:
		return n.Kind != yaml.ScalarNode && len(n.Content) == 0
	case t.Kind() == reflect.Bool:
		return n.ShortTag() == "!!bool" && strings.EqualFold(n.Value, "false")
	case t.Kind() == reflect.String:
		return n.ShortTag() == "!!str" && n.Value == ""
	case t.Kind() == reflect.Int32:
		return n.ShortTag() == "!!int" && n.Value == "0"
	}
	return false
}

type rules map[string]rule

// all gives fields the same rule.
func (r rules) all(f fate, why, names string) rules {
	for _, n := range strings.Fields(names) {
		r[n] = rule{fate: f, why: why}
	}
	return r
}

// but gives one field a rule of its own.
func (r rules) but(name string, f fate, why string, harmless ...string) rules {
	r[name] = rule{f, why, harmless}
	return r
}

// honour begins the rules of a type with what it honours.
func honour(names string) rules { return rules{}.all(honoured, "", names) }

const (
	whyOneHost   = "there is one host, nothing is scheduled"
	whyNoAPI     = "there is no API server to speak to"
	whyVM        = "a pod is a virtual machine, with no namespaces of the host in it"
	whyCluster   = "it is of a cluster's storage"
	whyHostDirs  = "host directories can't be mounted yet"
	whyNoRollout = "a Deployment's pods are made once, there are no rollouts"
	whyOneRun    = "a Job is one pod, there is no Job controller"
	whyLSM       = "the guest's kernel has no such security module; the virtual machine is the boundary"
	whyWindows   = "it is for Windows"
	whyUser      = "files of volumes are root's, with the group fsGroup"
	whyPorts     = "publishing ports comes in a later release"
	whyDevices   = "devices and resource claims are not given to pods"
)

const clusterNotes = "selfLink uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds ownerReferences finalizers managedFields"

// fates are the rules of each type that a pod file can have: a test sees that
// no field is forgotten. What is not in it, below a hint, is only checked for form.
var fates = map[reflect.Type]rules{
	reflect.TypeFor[metav1.ObjectMeta](): honour("name namespace labels annotations").all(note, "", clusterNotes).
		but("generateName", refused, "names are not generated; give a name"),
	reflect.TypeFor[metav1.LabelSelector]():            honour("matchLabels matchExpressions"),
	reflect.TypeFor[metav1.LabelSelectorRequirement](): honour("key operator values"),

	reflect.TypeFor[corev1.Pod]():             honour("apiVersion kind metadata spec").all(note, "", "status"),
	reflect.TypeFor[corev1.PodTemplateSpec](): honour("metadata spec"),
	reflect.TypeFor[corev1.ConfigMap]():       honour("apiVersion kind metadata data binaryData").all(note, "", "immutable"),
	reflect.TypeFor[corev1.Secret]():          honour("apiVersion kind metadata data stringData").all(note, "", "immutable type"),
	reflect.TypeFor[appsv1.Deployment]():      honour("apiVersion kind metadata spec").all(note, "", "status"),
	reflect.TypeFor[appsv1.DeploymentSpec](): honour("replicas selector template").
		all(hint, whyNoRollout, "strategy minReadySeconds revisionHistoryLimit progressDeadlineSeconds").
		but("paused", refused, whyNoRollout),
	reflect.TypeFor[batchv1.Job](): honour("apiVersion kind metadata spec").all(note, "", "status"),
	reflect.TypeFor[batchv1.JobSpec](): honour("parallelism completions backoffLimit template").
		all(note, "", "selector manualSelector").
		all(hint, whyOneRun, "podReplacementPolicy").
		all(hint, whyOneHost, "scheduling").
		all(refused, whyOneRun, "podFailurePolicy successPolicy backoffLimitPerIndex maxFailedIndexes suspend managedBy ttlSecondsAfterFinished").
		but("completionMode", refused, whyOneRun, "NonIndexed").
		but("activeDeadlineSeconds", refused, "a pod has no deadline; use timeout(1) in the container"),

	reflect.TypeFor[corev1.PodSpec]():            podRules,
	reflect.TypeFor[corev1.Container]():          containerRules,
	reflect.TypeFor[corev1.Volume]():             volumeRules,
	reflect.TypeFor[corev1.PodOS]():              honour("name"),
	reflect.TypeFor[corev1.HostAlias]():          honour("ip hostnames"),
	reflect.TypeFor[corev1.PodDNSConfig]():       honour("nameservers searches options"),
	reflect.TypeFor[corev1.PodDNSConfigOption](): honour("name value"),
	reflect.TypeFor[corev1.Sysctl]():             honour("name value"),

	reflect.TypeFor[corev1.ResourceRequirements]():       honour("limits requests").all(refused, whyDevices, "claims"),
	reflect.TypeFor[corev1.ContainerResizePolicy]():      honour("resourceName restartPolicy"),
	reflect.TypeFor[corev1.VolumeResourceRequirements](): honour("limits requests"),
	reflect.TypeFor[corev1.ContainerPort]():              honour("name containerPort protocol").all(refused, whyPorts, "hostPort hostIP"),

	reflect.TypeFor[corev1.EnvVar]():             honour("name value valueFrom"),
	reflect.TypeFor[corev1.EnvVarSource]():       honour("fieldRef resourceFieldRef configMapKeyRef secretKeyRef").all(refused, "variables can't come from files of a volume", "fileKeyRef"),
	reflect.TypeFor[corev1.EnvFromSource]():      honour("prefix configMapRef secretRef"),
	reflect.TypeFor[corev1.ConfigMapEnvSource](): honour("name optional"),
	reflect.TypeFor[corev1.SecretEnvSource]():    honour("name optional"),

	reflect.TypeFor[corev1.ConfigMapKeySelector]():  honour("name key optional"),
	reflect.TypeFor[corev1.SecretKeySelector]():     honour("name key optional"),
	reflect.TypeFor[corev1.ObjectFieldSelector]():   honour("fieldPath").but("apiVersion", refused, "fields are those of v1", "v1"),
	reflect.TypeFor[corev1.ResourceFieldSelector](): honour("containerName resource divisor"),

	reflect.TypeFor[corev1.VolumeMount](): honour("name readOnly mountPath subPath subPathExpr").
		but("mountPropagation", refused, "a volume has no mounts in it to propagate", "None").
		but("recursiveReadOnly", refused, "a volume has no mounts in it; use readOnly", "Disabled", "IfPossible").
		but("bindMountOptions", refused, "a volume is mounted as it is"),
	reflect.TypeFor[corev1.EmptyDirVolumeSource]():          honour("medium sizeLimit mode"),
	reflect.TypeFor[corev1.ConfigMapVolumeSource]():         honour("name items defaultMode optional").all(refused, whyUser, "defaultUser"),
	reflect.TypeFor[corev1.SecretVolumeSource]():            honour("secretName items defaultMode optional").all(refused, whyUser, "defaultUser"),
	reflect.TypeFor[corev1.KeyToPath]():                     honour("key path mode").all(refused, whyUser, "user"),
	reflect.TypeFor[corev1.DownwardAPIVolumeSource]():       honour("items defaultMode").all(refused, whyUser, "defaultUser"),
	reflect.TypeFor[corev1.DownwardAPIVolumeFile]():         honour("path fieldRef resourceFieldRef mode").all(refused, whyUser, "user"),
	reflect.TypeFor[corev1.ProjectedVolumeSource]():         honour("sources defaultMode").all(refused, whyUser, "defaultUser"),
	reflect.TypeFor[corev1.VolumeProjection]():              honour("secret configMap downwardAPI").all(refused, whyNoAPI, "serviceAccountToken clusterTrustBundle podCertificate"),
	reflect.TypeFor[corev1.SecretProjection]():              honour("name items optional"),
	reflect.TypeFor[corev1.ConfigMapProjection]():           honour("name items optional"),
	reflect.TypeFor[corev1.DownwardAPIProjection]():         honour("items"),
	reflect.TypeFor[corev1.EphemeralVolumeSource]():         honour("volumeClaimTemplate"),
	reflect.TypeFor[corev1.PersistentVolumeClaimTemplate](): honour("spec").all(note, "", "metadata"),
	reflect.TypeFor[corev1.PersistentVolumeClaimSpec](): honour("resources").
		all(hint, "there is one kind of storage, the pod's own disks", "storageClassName volumeAttributesClassName").
		all(refused, whyCluster, "selector volumeName dataSource dataSourceRef").
		but("accessModes", note, "").
		but("volumeMode", refused, "a volume is a directory", "Filesystem"),

	reflect.TypeFor[corev1.Probe]():            honour("exec httpGet tcpSocket grpc initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold terminationGracePeriodSeconds"),
	reflect.TypeFor[corev1.ExecAction]():       honour("command"),
	reflect.TypeFor[corev1.HTTPGetAction]():    honour("path port host scheme httpHeaders").but("protocol", refused, "a probe speaks HTTP/1.1", "HTTP1"),
	reflect.TypeFor[corev1.HTTPHeader]():       honour("name value"),
	reflect.TypeFor[corev1.TCPSocketAction]():  honour("port host"),
	reflect.TypeFor[corev1.GRPCAction]():       honour("port service").but("mode", refused, "a probe speaks without TLS", "Plaintext"),
	reflect.TypeFor[corev1.SleepAction]():      honour("seconds"),
	reflect.TypeFor[corev1.Lifecycle]():        honour("postStart preStop stopSignal"),
	reflect.TypeFor[corev1.LifecycleHandler](): honour("exec httpGet tcpSocket sleep"),

	reflect.TypeFor[corev1.SecurityContext](): honour("capabilities privileged runAsUser runAsGroup runAsNonRoot readOnlyRootFilesystem allowPrivilegeEscalation procMount seccompProfile").
		all(refused, whyLSM, "seLinuxOptions appArmorProfile").
		all(refused, whyWindows, "windowsOptions"),
	reflect.TypeFor[corev1.PodSecurityContext](): honour("runAsUser runAsGroup runAsNonRoot supplementalGroups fsGroup sysctls seccompProfile").
		all(refused, whyLSM, "seLinuxOptions appArmorProfile seLinuxChangePolicy").
		all(refused, whyWindows, "windowsOptions").
		all(note, "", "fsGroupChangePolicy"). // of volumes that were there before
		but("supplementalGroupsPolicy", refused, "groups of the image's user always count too", "Merge"),
	reflect.TypeFor[corev1.Capabilities]():   honour("add drop"),
	reflect.TypeFor[corev1.SeccompProfile](): honour("type").but("localhostProfile", refused, "profiles of a cluster's nodes are not here"),
}

var podRules = honour("volumes initContainers containers restartPolicy terminationGracePeriodSeconds dnsPolicy shareProcessNamespace securityContext hostname subdomain hostAliases dnsConfig os hostUsers resources hostnameOverride").
	all(note, "", "enableServiceLinks").
	all(hint, whyOneHost, "nodeSelector nodeName affinity tolerations priorityClassName topologySpreadConstraints schedulingGroup").
	but("schedulerName", hint, whyOneHost, "default-scheduler").
	but("priority", hint, whyOneHost, "0").
	but("preemptionPolicy", hint, whyOneHost, "PreemptLowerPriority").
	but("serviceAccountName", hint, whyNoAPI, "default").
	but("serviceAccount", hint, whyNoAPI, "default").
	but("automountServiceAccountToken", hint, whyNoAPI).
	but("overhead", hint, "what the virtual machine itself needs is added anyway").
	all(refused, whyVM, "hostNetwork hostPID hostIPC").
	but("ephemeralContainers", refused, "hyper debug starts what you need to look into a pod").
	but("activeDeadlineSeconds", refused, "a pod has no deadline; use timeout(1) in the container").
	but("imagePullSecrets", refused, "credentials are those of hyper login").
	but("readinessGates", refused, whyNoAPI).
	but("evictionResponders", refused, whyNoAPI).
	but("schedulingGates", refused, whyOneHost).
	but("runtimeClassName", refused, "the only runtime is hyper", "hyper").
	but("setHostnameAsFQDN", refused, "the hostname is the short one").
	but("resourceClaims", refused, whyDevices)

var containerRules = honour("name image command args workingDir ports envFrom env resources resizePolicy restartPolicy volumeMounts livenessProbe readinessProbe startupProbe lifecycle imagePullPolicy securityContext stdin stdinOnce tty").
	but("restartPolicyRules", refused, "restarts do not depend on the exit code beyond restartPolicy").
	but("volumeDevices", refused, "volumes are directories, not devices").
	but("terminationMessagePath", hint, "hyper why shows how a container ended", "/dev/termination-log").
	but("terminationMessagePolicy", hint, "hyper why shows how a container ended", "File", "FallbackToLogsOnError")

var volumeRules = honour("name emptyDir configMap secret downwardAPI projected ephemeral").
	all(refused, whyHostDirs, "hostPath").
	all(refused, whyCluster, `persistentVolumeClaim csi nfs iscsi glusterfs rbd flexVolume cinder cephfs flocker fc azureFile azureDisk
		vsphereVolume quobyte photonPersistentDisk portworxVolume scaleIO storageos gcePersistentDisk awsElasticBlockStore`).
	all(refused, "use an init container that clones it into an emptyDir", "gitRepo").
	all(refused, "images can't be mounted as volumes", "image")
