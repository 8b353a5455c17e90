package report

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// Env is where and of what figures were taken. What a system does not tell is empty.
type Env struct {
	Host    string    `json:"host"`
	Kernel  string    `json:"kernel"`
	CPU     string    `json:"cpu"` // model
	Cores   int       `json:"cores"`
	Go      string    `json:"go"`
	TCP     string    `json:"tcp_congestion_control"`
	Load    string    `json:"load_average"` // before the measurement: of 1, 5 and 15 minutes
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"` // with "-dirty" where files have changed since
	Command []string  `json:"command"`
}

// Environment describes this machine and process now. Call it before measuring: the load average is to be that of others. It
// runs git in the current folder; a binary outside of a repository names the commit it was built from, if it knows.
func Environment() Env {
	e := Env{
		Kernel: file("/proc/sys/kernel/osrelease"), TCP: file("/proc/sys/net/ipv4/tcp_congestion_control"),
		Cores: runtime.NumCPU(), Go: runtime.Version(), Date: time.Now().UTC().Truncate(time.Second), Commit: commit(),
		Command: append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...),
	}
	if f := strings.Fields(file("/proc/loadavg")); len(f) >= 3 {
		e.Load = strings.Join(f[:3], " ")
	}
	e.Host, _ = os.Hostname()
	for line := range strings.Lines(file("/proc/cpuinfo")) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			e.CPU = strings.TrimSpace(value)
			break
		}
	}
	return e
}

func commit() string {
	if out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	revision = revision[:min(len(revision), 12)]
	if revision != "" && settings["vcs.modified"] == "true" {
		revision += "-dirty"
	}
	return revision
}

func file(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}
