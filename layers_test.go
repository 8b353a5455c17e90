package culvert_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "culvert.dev/culvert/"

// Imports point down only: a package may import packages of lower layers and its own subpackages and parents. A package
// that is not in the table belongs to the entry of its closest parent.
var layers = [][]string{
	{"internal/packet", "internal/wgkey", "internal/hostnet", "internal/show", "internal/stream", "internal/thrift"}, // the bottom: these import nothing of the module
	{"nat", "filter"},
	{"tunnel", "netstack", "traversal", "internal/config", "internal/wguapi"},
	{"internal/control", "internal/proxy", "internal/forward", "internal/dns", "bench"},
	{"node"},
	{"cmd"},
}

// testSupport packages are for tests and measurements, so that nothing of the product may import them. They may import
// anything below cmd.
var testSupport = []string{"internal/lab", "internal/testnet", "bench/compare", "bench/proxies", "bench/report", "bench/load", "bench/hotpath"}

// gates are the only packages that may import something from outside.
var gates = []struct {
	path string
	only []string
}{
	{"gvisor.dev/gvisor", []string{"netstack"}},
	{"golang.zx2c4.com/wireguard/device", []string{"tunnel", "internal/testnet"}},
	{"github.com/pion/stun", []string{"traversal"}},
	{"github.com/urfave/cli", []string{"cmd"}},
	{"github.com/rogpeppe/go-internal", nil}, // tests only
}

// violation returns what is wrong with an import by code other than tests, "" if nothing is.
func violation(importer, imported string) string {
	from := strings.TrimPrefix(importer, module)
	to, own := strings.CutPrefix(imported, module)
	if !own {
		for _, g := range gates {
			if within(imported, g.path) && !withinAny(from, g.only) {
				return fmt.Sprintf("%s is for %v only", g.path, g.only)
			}
		}
		return ""
	}
	if withinAny(to, testSupport) && !withinAny(from, testSupport) {
		return to + " is for tests only"
	}
	if withinAny(from, testSupport) {
		if within(to, "cmd") {
			return "nothing imports cmd"
		}
		return ""
	}
	fromLayer, fromEntry := layerOf(from)
	toLayer, toEntry := layerOf(to)
	switch {
	case fromLayer < 0:
		return from + " has no place in the table of layers"
	case toLayer < 0:
		return to + " has no place in the table of layers"
	case fromEntry == toEntry, toLayer < fromLayer:
		return ""
	case toLayer == fromLayer:
		return fmt.Sprintf("%s and %s are of one layer", fromEntry, toEntry)
	default:
		return fmt.Sprintf("%s lies above %s", toEntry, fromEntry)
	}
}

// layerOf returns the layer of a package and the entry of the table it falls under; -1 without one.
func layerOf(path string) (layer int, entry string) {
	for i, names := range layers {
		for _, name := range names {
			if within(path, name) {
				return i, name
			}
		}
	}
	return -1, ""
}

// within reports whether path is root or lies below it. The next major version of a module counts as below.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func withinAny(path string, roots []string) bool {
	for _, r := range roots {
		if within(path, r) {
			return true
		}
	}
	return false
}

func TestLayers(t *testing.T) {
	watchSources(t)
	packages := listPackages(t)
	for _, p := range packages {
		for _, imported := range p.Imports {
			if fault := violation(p.ImportPath, imported); fault != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, fault)
			}
		}
	}
	if len(packages) < 5 {
		t.Errorf("go list knows only %d packages, so this test tests nothing", len(packages))
	}
}

// watchSources looks at every source file, so that go test takes no old result from its cache after one has changed: it
// cannot know what go list reads.
func watchSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go"):
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

type listedPackage struct {
	ImportPath string
	Imports    []string // without those of tests
}

func listPackages(t *testing.T) (list []listedPackage) {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("the go command is not installed")
	}
	cmd := exec.Command(tool, "list", "-e", "-json=ImportPath,Imports", "./...")
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, problems.String())
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return list
		case err != nil:
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestLayerRules(t *testing.T) {
	for _, c := range []struct {
		importer, imported string
		fault              string // a part of it; "" for allowed
	}{
		{"cmd/culvert", module + "node", ""},
		{"cmd/culvert", module + "internal/wgkey", ""},
		{"cmd/culvert", "github.com/urfave/cli/v2", ""},
		{"node", module + "netstack", ""},
		{"node", "net/http", ""},
		{"node", module + "cmd/culvert", "cmd lies above node"},
		{"internal/control", module + "node", "node lies above internal/control"},
		{"internal/dns", module + "internal/control", "of one layer"},
		{"internal/dns", module + "internal/config", ""},
		{"internal/proxy", module + "tunnel", ""},
		{"netstack", module + "tunnel", "of one layer"},
		{"netstack", module + "nat", ""},
		{"netstack", module + "netstack/hostsock", ""},
		{"netstack/hostsock", module + "netstack", ""},
		{"netstack/hostsock", module + "tunnel", "of one layer"},
		{"traversal/relay", module + "traversal/portmap", ""},
		{"nat", module + "filter", "of one layer"},
		{"nat", module + "netstack", "netstack lies above nat"},
		{"internal/packet", module + "nat", "nat lies above internal/packet"},
		{"internal/packet", module + "internal/wgkey", "of one layer"},
		{"internal/util", "fmt", ""},
		{"internal/util", module + "nat", "no place"},
		{"node", module + "internal/util", "no place"},
		{"internal/packets", module + "nat", "no place"}, // a common prefix is no parent

		{"netstack/hostsock", "gvisor.dev/gvisor/pkg/tcpip", ""},
		{"node", "gvisor.dev/gvisor/pkg/tcpip", "for [netstack] only"},
		{"tunnel", "golang.zx2c4.com/wireguard/device", ""},
		{"netstack", "golang.zx2c4.com/wireguard/device", "only"},
		{"netstack", "golang.zx2c4.com/wireguard/tun", ""},
		{"traversal", "github.com/pion/stun/v3", ""},
		{"node", "github.com/pion/stun/v3", "only"},
		{"node", "github.com/urfave/cli/v2", "for [cmd] only"},
		{"cmd/culvert", "github.com/rogpeppe/go-internal/testscript", "only"},

		{"node", module + "internal/lab", "tests only"},
		{"bench", module + "internal/lab", "tests only"},
		{"cmd/culvert", module + "bench/compare", "tests only"},
		{"bench/compare", module + "internal/lab", ""},
		{"internal/lab", module + "node", ""},
		{"internal/testnet", module + "internal/lab", ""},
		{"internal/testnet", "golang.zx2c4.com/wireguard/device", ""},
		{"internal/lab", module + "cmd/culvert", "nothing imports cmd"},
		{"internal/lab", "gvisor.dev/gvisor/pkg/tcpip", "only"},
	} {
		got := violation(module+c.importer, c.imported)
		if (got == "") != (c.fault == "") || !strings.Contains(got, c.fault) {
			t.Errorf("%s imports %s: got %q, want %q", c.importer, c.imported, got, c.fault)
		}
	}
}
