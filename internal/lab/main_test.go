//go:build linux

package lab_test

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"culvert.dev/culvert/internal/lab"
)

// exitFlag chooses the exit that the cases run against. A case that the reference passes is a good case.
var exitFlag = flag.String("exit", string(lab.ExitCulvert), "exit under test: culvert, or reference (stock wireguard-go as root)")

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run()) // every test skips, as the laboratory was not entered
	}
	atOnce()
	programs := []lab.Program{lab.WireGuardGo}
	if lab.ExitKind(*exitFlag) == lab.ExitCulvert {
		programs = append(programs, lab.Culvert)
	}
	os.Exit(lab.Main(m.Run, programs...))
}

// atOnce lets more parallel tests run than there are processors, unless the command line says how many: most wait most of the time.
func atOnce() {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(max(5, runtime.GOMAXPROCS(0))))
	}
}

// family is a row of nearly every table: the cases of an exit hold for both.
type family struct {
	name string
	i    int    // index into the address pairs of the laboratory
	tcp  string // network names of the net package
	udp  string
	any  string // wildcard address
}

var families = []family{
	{"IPv4", 0, "tcp4", "udp4", "0.0.0.0"},
	{"IPv6", 1, "tcp6", "udp6", "[::]"},
}

// bothFamilies runs a case as two subtests.
func bothFamilies(t *testing.T, f func(t *testing.T, f family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// world is an Internet with an exit and the client c connected through it.
type world struct {
	*lab.Internet
	exit   *lab.Exit
	client *lab.Stock
	keys   lab.Clients
	config lab.ExitConfig
}

// newWorld starts a world whose clients have the given permissions. It waits until the client's tunnel is up.
func newWorld(t *testing.T, cOptions, pOptions string) *world {
	t.Helper()
	w := &world{Internet: lab.NewInternet(t)}
	w.keys = w.Keys()
	w.config = w.ExitConfig(w.keys, cOptions, pOptions)
	w.exit = w.X.StartExit(t, lab.ExitKind(*exitFlag), w.config)
	w.client = w.StockClient(t, w.C, w.keys.C, w.exit.Key)
	w.connect(t, w.C)
	return w
}

// connect makes a client's first handshake: an echo request to the exit's mesh address, which is always answered.
func (w *world) connect(t *testing.T, client *lab.Node) {
	t.Helper()
	if out, err := client.Exec("", "ping", "-n", "-c", "1", "-W", "10", lab.ExitMesh[0]); err != nil {
		t.Fatalf("no echo from the exit's mesh address: %v\n%s", err, out)
	}
}

// productOnly skips a case in which the reference legitimately differs, and says how.
func productOnly(t *testing.T, reason string) {
	t.Helper()
	if lab.ExitKind(*exitFlag) == lab.ExitReference {
		t.Skip("reference: " + reason)
	}
}
