package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// versionInfo is what the Go toolchain recorded when the binary was built.
type versionInfo struct {
	Version  string `json:"version"`            // of the module, "(devel)" for a build from a work tree without tags
	Revision string `json:"revision,omitempty"` // of the repository
	Time     string `json:"time,omitempty"`     // of that revision, RFC 3339
	Modified bool   `json:"modified"`           // the work tree had changes
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func readVersion() versionInfo {
	v := versionInfo{Version: "(devel)", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if build.Main.Version != "" {
		v.Version = build.Main.Version
	}
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

// String returns the version as status and logs show it.
func (v versionInfo) String() string {
	const short = 12
	if v.Version != "(devel)" || len(v.Revision) < short { // other versions contain the revision
		return v.Version
	}
	return v.Version + " " + v.Revision[:short]
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:               "version",
		Usage:              "print the version",
		Flags:              []cli.Flag{jsonFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert version --json"),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			v := readVersion()
			if c.Bool("json") {
				return printJSON(c.App.Writer, v)
			}
			_, err := fmt.Fprintf(c.App.Writer, "culvert %s %s %s/%s\n", v, v.Go, v.OS, v.Arch)
			return err
		},
	}
}
