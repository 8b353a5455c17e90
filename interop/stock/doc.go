// Package stock runs the reference implementation of DERP, so that tests and measurements can hold Culvert's relay
// against it: the derper command as its own process, derpserver within the calling process, and clients that connect as
// derphttp does. It is for tests; nothing of the product imports it.
//
// A Derper or Server may be used from several goroutines; a Client as derphttp.Client may.
//
//	binary, err := stock.Build(dir)
//	d, err := stock.Start(stock.DerperConfig{Binary: binary, Dir: dir})
//	defer d.Stop()
//	c, err := stock.Dial(ctx, stock.ClientConfig{Key: key, URL: d.URL, Roots: d.Roots})
package stock
