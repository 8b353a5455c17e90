//go:build linux

package lab_test

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/lab"
)

// example is a file of examples/ as the laboratory runs it: the containers of the app and of its sidecar.
type example struct {
	sidecar, app lab.ContainerConfig
	key          string     // where the private key is mounted
	page         string     // where the app's files are mounted
	probes       [][]string // commands that succeed once the sidecar is ready
}

// readYAML decodes a file of one YAML document, by way of JSON.
func readYAML(t *testing.T, file string, v any) {
	t.Helper()
	lab.Need(t, "python3")
	if err := exec.Command("python3", "-c", "import yaml").Run(); err != nil {
		lab.Skip(t, "python3-yaml is not installed")
	}
	text, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	convert := exec.Command("python3", "-c", "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)")
	convert.Stdin, convert.Stderr = text, os.Stderr
	out, err := convert.Output()
	if err == nil {
		err = json.Unmarshal(out, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// pageExample is the environment file in docs/sidecar.md, beside the app of the compose file.
func pageExample(t *testing.T) example {
	t.Helper()
	page, err := os.ReadFile("../../docs/sidecar.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(page), "```sh\n# web.env\n")
	block, _, ended := strings.Cut(block, "```\n")
	if !found || !ended {
		t.Fatal("docs/sidecar.md has no web.env")
	}
	file := filepath.Join(t.TempDir(), "web.env")
	if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
		t.Fatal(err)
	}
	e := composeExample(t)
	e.sidecar = lab.ContainerConfig{Options: []string{"--env-file=" + file}}
	return e
}

// composeService is what the test needs of a service, as docker compose names it.
type composeService struct {
	User        string
	ReadOnly    bool     `json:"read_only"`
	CapDrop     []string `json:"cap_drop"`
	SecurityOpt []string `json:"security_opt"`
	NetworkMode string   `json:"network_mode"`
	Tmpfs       []string
	Secrets     []string
	Volumes     []string
	Environment map[string]string
	Command     []string
	HealthCheck struct{ Test []string }
	DependsOn   map[string]struct {
		Condition string
		Restart   bool
	} `json:"depends_on"`
}

func (s composeService) locked() bool {
	return s.User == "65532:65532" && s.ReadOnly && slices.Equal(s.CapDrop, []string{"ALL"}) && slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"})
}

func composeExample(t *testing.T) (e example) {
	t.Helper()
	var file struct {
		Services map[string]composeService
		Secrets  map[string]struct{ File string }
	}
	readYAML(t, "../../examples/compose.yaml", &file)
	s, a := file.Services["culvert"], file.Services["app"]
	if needs := a.DependsOn["culvert"]; a.NetworkMode != "service:culvert" || needs.Condition != "service_healthy" || !needs.Restart {
		t.Errorf("the app has network %q and depends on %+v", a.NetworkMode, needs)
	}
	if !s.locked() || !a.locked() {
		t.Errorf("a service has privileges: %+v %+v", s, a)
	}
	if len(s.Tmpfs) != 1 || len(s.Secrets) != 1 || file.Secrets[s.Secrets[0]].File == "" || len(a.Volumes) != 1 || len(s.HealthCheck.Test) == 0 {
		t.Fatalf("the sidecar has tmpfs %v, secrets %v, health check %v; the app has volumes %v", s.Tmpfs, s.Secrets, s.HealthCheck.Test, a.Volumes)
	}
	e.sidecar = lab.ContainerConfig{Env: environment(s.Environment), Options: []string{"--tmpfs=" + s.Tmpfs[0]}}
	e.app = lab.ContainerConfig{Env: environment(a.Environment), Args: a.Command}
	e.key = "/run/secrets/" + s.Secrets[0]
	_, e.page, _ = strings.Cut(strings.TrimSuffix(a.Volumes[0], ":ro"), ":")
	e.probes = [][]string{s.HealthCheck.Test[1:]}
	return e
}

func environment(variables map[string]string) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		list = append(list, name+"="+variables[name])
	}
	return list
}

// kubeContainer is what the test needs of a container of a pod.
type kubeContainer struct {
	RestartPolicy                               string
	Command                                     []string
	Env                                         []struct{ Name, Value string }
	StartupProbe, ReadinessProbe, LivenessProbe struct {
		Exec struct{ Command []string }
	}
	SecurityContext struct {
		AllowPrivilegeEscalation *bool
		ReadOnlyRootFilesystem   bool
		Capabilities             struct{ Drop []string }
	}
	Resources    struct{ Requests, Limits map[string]string }
	VolumeMounts []struct{ Name, MountPath string }
}

func (c kubeContainer) locked() bool {
	s := c.SecurityContext
	return s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation && s.ReadOnlyRootFilesystem && slices.Equal(s.Capabilities.Drop, []string{"ALL"})
}

func (c kubeContainer) config() (config lab.ContainerConfig) {
	for _, v := range c.Env {
		config.Env = append(config.Env, v.Name+"="+v.Value)
	}
	return config
}

func (c kubeContainer) mount(name string) string {
	for _, m := range c.VolumeMounts {
		if m.Name == name {
			return m.MountPath
		}
	}
	return ""
}

func kubernetesExample(t *testing.T) (e example) {
	t.Helper()
	var file struct {
		Spec struct {
			Template struct {
				Spec struct {
					InitContainers, Containers []kubeContainer
					SecurityContext            struct {
						RunAsNonRoot       bool
						RunAsUser, FSGroup int
						SeccompProfile     struct{ Type string }
					}
				}
			}
		}
	}
	readYAML(t, "../../examples/kubernetes.yaml", &file)
	pod := file.Spec.Template.Spec
	if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 {
		t.Fatalf("%d init containers, %d containers", len(pod.InitContainers), len(pod.Containers))
	}
	s, a, user := pod.InitContainers[0], pod.Containers[0], pod.SecurityContext
	if !user.RunAsNonRoot || user.RunAsUser != podUser || user.FSGroup != podUser || user.SeccompProfile.Type != "RuntimeDefault" || !s.locked() || !a.locked() {
		t.Errorf("it is not what the restricted standard has: %+v %+v %+v", user, s.SecurityContext, a.SecurityContext)
	}
	if s.RestartPolicy != "Always" || s.Resources.Limits["memory"] == "" || s.mount("state") != "/var/lib/culvert" {
		t.Errorf("the sidecar restarts %q, has limits %v and its state at %q", s.RestartPolicy, s.Resources.Limits, s.mount("state"))
	}
	e.sidecar, e.app = s.config(), a.config()
	e.sidecar.Options = []string{"--tmpfs=/var/lib/culvert:size=4m"} // as an emptyDir is, with an fsGroup
	e.app.Args = a.Command
	e.key, e.page = s.mount("key")+"/private.key", a.mount("page")
	e.probes = [][]string{s.StartupProbe.Exec.Command, s.ReadinessProbe.Exec.Command, s.LivenessProbe.Exec.Command}
	return e
}
