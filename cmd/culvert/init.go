package main

import (
	"cmp"
	"fmt"

	"github.com/urfave/cli/v2"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "write a configuration with a fresh identity and a first device",
		ArgsUsage: "[FILE]",
		Description: "Beside the configuration lies device.conf, a WireGuard file for a phone or laptop that uses this node as\n" +
			"its exit. Both are readable by their owner alone. Existing files are never overwritten.",
		Flags: []cli.Flag{
			configFlag(),
			endpointFlag("; its port is the node's ListenPort too"),
			&cli.StringFlag{
				Name: "name", EnvVars: []string{"CULVERT_NAME"},
				Usage: "`NAME` of the node in the mesh (default: from the host name)",
			},
			stateFlag(),
		},
		CustomHelpTemplate: cli.CommandHelpTemplate + example("culvert init --endpoint vpn.example.org:51820"),
		Action:             runInit,
	}
}

func endpointFlag(more string) cli.Flag {
	return &cli.StringFlag{
		Name: "endpoint", EnvVars: []string{"CULVERT_ENDPOINT"},
		Usage: "`HOST[:PORT]` at which devices reach this node" + more + " (default: an address of this host)",
	}
}

func runInit(c *cli.Context) error {
	args, err := arguments(c, "[FILE]")
	if err != nil {
		return err
	}
	file := cmp.Or(args[0], c.String("config"))
	created, err := initialise(c, file)
	if err != nil {
		return err
	}
	if err := printCreated(c.App.Writer, created); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, "start the node with: culvert up"+fileOption(file))
	return err
}

func fileOption(file string) string {
	if file == "" {
		return ""
	}
	return " -c " + file
}
