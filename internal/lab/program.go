//go:build linux

package lab

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Program is a Go main package that Main builds before the laboratory starts.
type Program struct {
	Name    string // file name of the binary
	Package string // import path, of this module or of one that it requires
	Flags   string // further ones of go build, separated by spaces
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
	args := append([]string{"build", "-trimpath", "-buildvcs=false"}, strings.Fields(p.Flags)...)
	cmd := exec.Command("go", append(args, "-o", p.Path(), p.Package)...)
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

// touchSources makes the result of a test depend on the product's sources, although the test binary does not: go test
// runs a test again when a file that it has looked at while it ran has changed.
func touchSources() {
	root, err := os.Getwd()
	if err != nil {
		return
	}
	for ; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			return // outside of the module: a test binary that was carried elsewhere
		}
	}
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".go") {
			os.Stat(path)
		}
		return nil
	})
}
