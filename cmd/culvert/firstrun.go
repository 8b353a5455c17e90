package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/urfave/cli/v2"

	"culvert.dev/culvert/internal/config"
)

// ensureConfig is loadConfig for a command that runs a node: where no configuration exists and none was named, it makes
// one. created is nil when there was one.
func ensureConfig(c *cli.Context) (cfg *config.Config, state string, created *config.Created, err error) {
	cfg, state, err = loadConfig(c)
	var none *noConfigError
	if !errors.As(err, &none) {
		return cfg, state, nil, err
	}
	if created, err = initialise(c, ""); err != nil {
		return nil, "", nil, err
	}
	cfg, state, err = loadConfig(c)
	return cfg, state, created, err
}

// initialise writes a first configuration, to the default place if file is empty. Of the options it follows --state, --name
// and --endpoint, which a command need not have.
func initialise(c *cli.Context, file string) (*config.Created, error) {
	file, err := hostPlaces().newConfig(file, c.String("state"))
	if err != nil {
		return nil, err
	}
	at, err := nodeEndpoint(c.String("endpoint"), config.Endpoint{})
	if err != nil {
		return nil, err
	}
	name := c.String("name")
	if name == "" {
		host, _ := os.Hostname() // a host without a name gets a general one
		name = config.NameFromHost(host)
	}
	created, err := config.Init(config.InitOptions{
		File: file, Name: name, Endpoint: at, PortOf: portOf, OnLink: onLinkPrefixes(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w; -c FILE names another place", err)
	}
	return created, nil
}

// nodeEndpoint reads --endpoint, else takes what the configuration says, or guesses.
func nodeEndpoint(given string, configured config.Endpoint) (config.Endpoint, error) {
	if given == "" && configured.Host != "" {
		return configured, nil
	}
	if given == "" {
		return config.Endpoint{Host: config.GuessHost().String(), Guessed: true}, nil
	}
	at, err := config.ParseEndpoint(given)
	if err != nil {
		return at, usagef("--endpoint: %v", err)
	}
	return at, nil
}

// onLinkPrefixes lists this host's networks; none where it refuses to tell.
func onLinkPrefixes() []netip.Prefix {
	var list []netip.Prefix
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Masked())
		}
	}
	return list
}

// printCreated tells what a first run wrote, and no secret but the QR code, which is for the terminal alone.
func printCreated(w io.Writer, created *config.Created) error {
	fmt.Fprintf(w, "configuration: %s\n", created.File)
	fmt.Fprintf(w, "for your device: %s (import it into any WireGuard client)\n", created.DeviceFile)
	fmt.Fprintf(w, "endpoint: %s%s\n", created.Device.Endpoint, guessNote(created.Device.Endpoint))
	if !isTerminal(w) {
		return nil
	}
	return writeQR(w, created.Device.QRText(), true)
}

func guessNote(at config.Endpoint) string {
	if !at.Guessed {
		return ""
	}
	return fmt.Sprintf(" (this host's own address: where devices cannot reach it, forward UDP port %d and use --endpoint)", at.Port)
}
