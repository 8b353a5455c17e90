//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"culvert.dev/culvert/internal/lab"
	"culvert.dev/culvert/internal/wgkey"
)

func TestSlotsOfTheHelpAreTaken(t *testing.T) {
	t.Chdir("../..") // from where they are run
	command := regexp.MustCompile(`(-exit(?:-root)?) '([^']+)'`)
	examples := command.FindAllStringSubmatch(slotHelp, -1)
	if len(examples) != 2 {
		t.Fatalf("the help has %d examples, want 2", len(examples))
	}
	source, err := os.ReadFile("bench/compare/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(source), examples[0][0]) {
		t.Errorf("the package comment has another example than the help: %s", examples[0][0])
	}
	for _, e := range examples {
		o, err := parseOptions([]string{e[1], e[2]}, nil)
		if err != nil {
			t.Errorf("%s: %v", e[0], err)
		} else if len(o.Slots) != 1 || o.Slots[0].Root != (e[1] == "-exit-root") {
			t.Errorf("%s: got %+v", e[0], o.Slots)
		}
	}
}

func TestSlotsAreRefused(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.conf")
	if err := os.WriteFile(bad, []byte("Key = @SECRET@\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"without a command", "x", "NAME=COMMAND"},
		{"with an empty command", "x= ", "NAME=COMMAND"},
		{"without a name", "=true", "NAME=COMMAND"},
		{"with a name that is no word", "a b=true", "NAME=COMMAND"},
		{"with the name of another", "culvert=true", "already"},
		{"with the name of the reference", "reference=true", "already"},
		{"with an unknown placeholder", "x=run @NOTHING@", "@NOTHING@"},
		{"with a file that is not there", "x=run @FILE:/nowhere/at/all@", "/nowhere/at/all"},
		{"with a file that has an unknown placeholder", "x=run @FILE:" + bad + "@", "@SECRET@"},
		{"with a file without a path", "x=run @FILE@", "@FILE@"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseOptions([]string{"-exit", c.text}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	if _, err := parseOptions([]string{"-exit", "x=true", "-exit-root", "x=true"}, nil); err == nil {
		t.Error("two exits of one name: no error")
	}
}

func TestPlaceholdersAreReplaced(t *testing.T) {
	key, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	client, err := wgkey.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	set := settingsOf(lab.ExitConfig{Key: key, Port: 51820, Outside: []string{"r", "l"}, Peers: []lab.ExitPeer{{Key: client.Public()}}})
	got, err := set.replace(`{"k":"@PRIVATE_KEY@","p":@PORT@} $x ${y} a@b.example @CLIENT_KEY@ @OUTSIDE@ @MTU@`, nil)
	want := `{"k":"` + key.Reveal() + `","p":51820} $x ${y} a@b.example ` + client.Public().String() + " r 1420"
	if got != want || err != nil {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
	for name := range set {
		if _, err := set.replace("@"+name+"@", nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(slotHelp, "@"+name+"@") {
			t.Errorf("the help does not tell of @%s@", name)
		}
	}
	if len(set) != len(settingNames) {
		t.Errorf("%d settings, but %d names", len(set), len(settingNames))
	}
	bad := errors.New("bad")
	if _, err := set.replace("@FILE:x@", func(string) (string, error) { return "", bad }); !errors.Is(err, bad) {
		t.Errorf("got %v, want the error of the file", err)
	}
}
