package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"culvert": main})
}

// The scripts are the specification of the command line. Beside testscript's own commands they have
//
//	exits STATUS CMD…   run CMD, which must end with this status
//	mode PERM FILE…     the files have exactly these permissions, in octal
//	hidden FILE…        neither stdout nor stderr of the last command shows a private or preshared key of the files
//
// and the conditions [root] and [etc] (the machine has /etc/culvert/culvert.conf).
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir+"/home")
			env.Setenv("CULVERT_STATE", env.WorkDir+"/state") // root's would be the machine's
			return nil
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "root":
				return os.Geteuid() == 0, nil
			case "etc": // this machine has a configuration of its own
				_, err := os.Stat("/etc/culvert/culvert.conf")
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %s", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  scriptExits,
			"mode":   scriptMode,
			"hidden": scriptHidden,
		},
	})
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS CMD…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var status *exec.ExitError
		if !errors.As(err, &status) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = status.ExitCode()
	}
	if got != want {
		ts.Fatalf("got exit status %d, want %d; stdout: %s; stderr: %s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func scriptMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode PERM FILE…")
	}
	for _, file := range args[1:] {
		info, err := os.Stat(ts.MkAbs(file))
		ts.Check(err)
		if got := strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
			ts.Fatalf("%s: got mode %s, want %s", file, got, args[0])
		}
	}
}

var secretLine = regexp.MustCompile(`(?m)^(?:PrivateKey|PresharedKey) *= *(\S+)`)

func scriptHidden(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: hidden FILE…")
	}
	output := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	for _, file := range args {
		found := secretLine.FindAllStringSubmatch(ts.ReadFile(file), -1)
		if len(found) == 0 {
			ts.Fatalf("%s holds no secret", file)
		}
		for _, m := range found {
			if strings.Contains(output, m[1]) {
				ts.Fatalf("a secret of %s was printed", file)
			}
		}
	}
}
