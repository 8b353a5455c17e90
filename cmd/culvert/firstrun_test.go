package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

// runEnsure calls ensureConfig as "culvert up" with these arguments would.
func runEnsure(t *testing.T, args ...string) (cfg *config.Config, created *config.Created, err error) {
	t.Helper()
	app := &cli.App{
		Flags:          []cli.Flag{configFlag(), stateFlag(), endpointFlag("")},
		Writer:         io.Discard,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			cfg, _, created, err = ensureConfig(c)
			return nil
		},
	}
	if runErr := app.Run(append([]string{"culvert"}, args...)); runErr != nil {
		t.Fatal(runErr)
	}
	return cfg, created, err
}

func TestFirstRunInitialisesOnce(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"CULVERT_CONFIG", "XDG_CONFIG_HOME", "CULVERT_ENDPOINT"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", filepath.Join(dir, "home"))
	t.Setenv("CULVERT_STATE", filepath.Join(dir, "state"))
	if _, err := hostPlaces().config("", ""); err == nil {
		t.Skip("SKIP: this machine has a configuration in /etc/culvert")
	}

	absent := filepath.Join(dir, "absent.conf")
	_, created, err := runEnsure(t, "-c", absent)
	if err == nil || created != nil || !strings.HasSuffix(err.Error(), "culvert init -c "+absent+" writes one") {
		t.Errorf("a configuration that was named is not invented: got %v, %v", created, err)
	}

	cfg, created, err := runEnsure(t, "--endpoint", "vpn.example")
	if err != nil || created == nil {
		t.Fatalf("got %v, %v", created, err)
	}
	if want := filepath.Join(dir, "home/.config/culvert/culvert.conf"); created.File != want || cfg.File != want {
		t.Errorf("got %s and %s, want %s", created.File, cfg.File, want)
	}
	if created.Device.Endpoint.Host != "vpn.example" || created.Device.Endpoint.Port != cfg.Interface.ListenPort {
		t.Errorf("got endpoint %s, port %d", created.Device.Endpoint, cfg.Interface.ListenPort)
	}
	var said strings.Builder
	if err := printCreated(&said, created); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(created.DeviceFile)
	if err != nil || string(text) != created.Device.Text() {
		t.Errorf("the device file holds %q (%v), want %q", text, err, created.Device.Text())
	}
	if !strings.Contains(said.String(), created.DeviceFile) || strings.Contains(said.String(), created.Device.PrivateKey.Reveal()) {
		t.Errorf("printed:\n%s", said.String())
	}

	again, created, err := runEnsure(t)
	if err != nil || created != nil || again.Interface.PrivateKey != cfg.Interface.PrivateKey {
		t.Errorf("second run: got %v, %v, or another identity", created, err)
	}
}
