package kubernetes_test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// TestBenchManifest: deploy/kubernetes/bench.yaml is what Kubernetes' own types say, strictly: one agent in the host network and one in a pod of each
// node, alike but for that, without rights, which read the Secret that its comment makes.
func TestBenchManifest(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kubernetes/bench.yaml")
	must(t, err)
	sets := map[string]appsv1.DaemonSet{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		data, err := yaml.ToJSON([]byte(doc))
		must(t, err)
		strictly := func(v any) {
			d := json.NewDecoder(bytes.NewReader(data))
			d.DisallowUnknownFields()
			if err := d.Decode(v); err != nil {
				t.Errorf("%v in\n%s", err, doc)
			}
		}
		if strings.Contains(doc, "\nkind: Namespace\n") {
			var n corev1.Namespace
			if strictly(&n); n.Name != "weft-bench" {
				t.Errorf("namespace %q", n.Name)
			}
			continue
		}
		var d appsv1.DaemonSet
		strictly(&d)
		sets[d.Name] = d
	}
	if len(sets) != 2 {
		t.Fatalf("%d sets", len(sets))
	}
	for name, d := range sets {
		pod := d.Spec.Template.Spec
		if d.Kind != "DaemonSet" || d.Namespace != "weft-bench" || pod.HostNetwork != (name == "hosts") || d.Spec.Selector.MatchLabels["app"] != name || d.Spec.Template.Labels["app"] != name {
			t.Errorf("%s: %+v", name, d)
		}
		c := pod.Containers[0]
		if s := c.SecurityContext; len(pod.Containers) != 1 || s.Privileged != nil || len(s.Capabilities.Add) > 0 || !slices.Contains(s.Capabilities.Drop, "ALL") || !*s.ReadOnlyRootFilesystem {
			t.Errorf("%s has rights: %+v", name, s)
		}
		if c.ReadinessProbe.TCPSocket.Port.IntValue() != 8479 {
			t.Errorf("%s: %+v", name, c.ReadinessProbe)
		}
		secret := c.Command[slices.Index(c.Command, "--secret")+1]
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath+"/secret" == secret && m.ReadOnly }) ||
			!strings.Contains(string(text), "create secret generic "+pod.Volumes[0].Secret.SecretName+" --from-literal=secret=") || strings.Count(string(text), secret) != 3 {
			t.Errorf("%s reads %s", name, secret)
		}
	}
	if a, b := sets["hosts"].Spec.Template.Spec.Containers[0], sets["pods"].Spec.Template.Spec.Containers[0]; !slices.Equal(a.Command, b.Command) || a.Image != b.Image {
		t.Errorf("not alike: %v and %v", a.Command, b.Command)
	}
}
