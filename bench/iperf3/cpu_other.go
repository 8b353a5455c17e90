//go:build !unix

package iperf3

// readCPU is not implemented here.
func readCPU() cpuTimes { return cpuTimes{} }
