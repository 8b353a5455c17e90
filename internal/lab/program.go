//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
)

// Program is a Go main package that Main builds before the laboratory starts.
type Program struct {
	Name    string // file name of the binary
	Package string // import path, of this module or of one that it requires
}

// The programs that laboratories are about.
var (
	// WireGuardGo is stock wireguard-go: the client of every exit test, and the reference exit.
	WireGuardGo = Program{Name: "wireguard-go", Package: "golang.zx2c4.com/wireguard"}
	// Culvert is the product.
	Culvert = Program{Name: "culvert", Package: "culvert.dev/culvert/cmd/culvert"}
)

// Path is where the binary lies inside the laboratory.
func (p Program) Path() string { return runDir + "/bin/" + p.Name }

// raceEnv, when not empty, has the product built with the race detector.
const raceEnv = "CULVERT_LAB_RACE"

// Racing reports whether the product runs under the race detector, which costs it time and memory.
func Racing() bool { return os.Getenv(raceEnv) != "" }

// build compiles the program the way a release is compiled: static, without paths of this machine.
func (p Program) build() error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", p.Path(), p.Package)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if p == Culvert && Racing() {
		cmd.Args = append(cmd.Args[:2:2], append([]string{"-race"}, cmd.Args[2:]...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", p.Package, err, out)
	}
	return nil
}
