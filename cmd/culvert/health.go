package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func healthCommand() *cli.Command {
	return &cli.Command{
		Name:        "health",
		Usage:       "exit with status 0 when the running node is ready, else with 1 and the reason",
		Description: "Made for the health checks of containers and service managers.",
		Flags:       []cli.Flag{socketFlag(), configFlag(), stateFlag()},
		CustomHelpTemplate: cli.CommandHelpTemplate + example(
			"culvert health && echo up",
			`docker run --health-cmd "/culvert health" …`),
		Action: runHealth,
	}
}

func runHealth(c *cli.Context) error {
	client, err := nodeClient(c)
	if err != nil {
		return err
	}
	if err := client.Health(c.Context); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, "ready")
	return err
}
