//go:build !linux

package hostnet

func addresses() ([]Address, error) { return interfaceAddresses() }

// gateways has no source that works without a privilege or another program.
func gateways() ([]Gateway, error) { return nil, ErrNoGateways }
