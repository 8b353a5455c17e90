package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

// A variable is either an option's or part of the configuration: none is both.
func TestOptionsAndTheConfigurationShareNoVariable(t *testing.T) {
	var names []string
	eachFlag(newApp().Commands, func(f cli.DocGenerationFlag) { names = append(names, f.GetEnvVars()...) })
	if len(names) < 50 {
		t.Fatalf("only %d options", len(names))
	}
	for _, k := range slices.Concat(config.EnvironmentKeys(), config.RelayEnvironmentKeys()) {
		for _, name := range []string{k.Name, strings.Replace(k.Name, "_<N>", "", 1)} {
			if slices.Contains(names, name) || slices.Contains(names, name+"_FILE") {
				t.Errorf("%s is an option too", name)
			}
		}
	}
	environ := []string{"PATH=/bin", "CULVERT_EXIT_DNS=off"}
	for _, name := range names {
		environ = append(environ, name+"=x")
	}
	left := withoutOptions(environ)
	if !slices.Equal(left, []string{"PATH=/bin", "CULVERT_EXIT_DNS=off"}) {
		t.Errorf("left is %v", left)
	}
	if config.HasEnvironment(left[:1]) || !config.HasEnvironment(left) {
		t.Error("the configuration in the environment is not found")
	}
}

// Every option of every command is a variable, of its own name.
func TestEveryOptionIsAVariable(t *testing.T) {
	eachFlag(newApp().Commands, func(f cli.DocGenerationFlag) {
		name := f.(cli.Flag).Names()[0]
		want := "CULVERT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if got := f.GetEnvVars(); !slices.Equal(got, []string{want}) {
			t.Errorf("--%s has the variables %v, want %s", name, got, want)
		}
	})
}

// Each value is one section, in the order of ssh: those of -L, of -R, of -D; --exit goes with the latter.
func TestShorthandsAreInTheOrderGiven(t *testing.T) {
	var got []config.Extra
	app := &cli.App{
		Flags: shorthandFlags(),
		Action: func(c *cli.Context) (err error) {
			got, err = extras(c)
			return err
		},
	}
	args := []string{"culvert", "-R", "80:127.0.0.1:8000", "-L", "5432:db:5432", "-D", "1080", "-L", "5433:db:5432", "-E", "fra,ams"}
	for _, name := range []string{"CULVERT_FORWARD", "CULVERT_PUBLISH", "CULVERT_SOCKS5", "CULVERT_EXIT"} {
		t.Setenv(name, "")
	}
	t.Setenv("CULVERT_FORWARD", "1:one:1\n2:two:2")
	if err := app.Run(args); err != nil {
		t.Fatal(err)
	}
	var options []string
	for _, x := range got {
		options = append(options, x.Option)
	}
	if want := []string{"-L 5432:db:5432", "-L 5433:db:5432", "-R 80:127.0.0.1:8000", "-D 1080"}; !slices.Equal(options, want) {
		t.Errorf("got %q, want %q", options, want)
	}
	if k := got[3].Keys; k[len(k)-1] != (config.ExtraKey{Key: "Exit", Value: "fra,ams", Option: "--exit fra,ams"}) {
		t.Errorf("got %v", k)
	}

	app.Flags = shorthandFlags()
	if err := app.Run([]string{"culvert"}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Option != "CULVERT_FORWARD 1:one:1" || got[1].Option != "CULVERT_FORWARD 2:two:2" {
		t.Errorf("from the environment: got %+v", got)
	}
}
