// Package interop holds Culvert's relay, in both roles, against the reference implementation of DERP, tailscale.com. It is
// a module of its own so that the product's go.mod stays free of that one; its code is tests only, beside package stock,
// which runs the reference, and the command compare, which measures both.
//
//	cd interop && go test ./...
//
// The tests use loopback sockets only, need no root, and build the derper command once (half a minute with a cold cache).
package interop
