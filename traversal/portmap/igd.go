package portmap

import (
	"slices"
	"strconv"
	"strings"
)

// The services that are used, by their types without version. The order is that of preference.
const (
	typeIP       = "urn:schemas-upnp-org:service:WANIPConnection:"
	typePPP      = "urn:schemas-upnp-org:service:WANPPPConnection:"
	typeFirewall = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:"
)

// maxServices bounds how many of a gateway's services are tried.
const maxServices = 4

// description is what there is to know of a device and those in it.
type description struct {
	model    string // for people: maker, name and number, as far as given
	version  string // of the gateway device: "1" or "2"; "" if there is none
	services []igdService
}

// igdService is one service of a device.
type igdService struct {
	kind    string // full type, version included
	control location
}

// parseDescription reads the description that lies at a location (UPnP Device Architecture 1.1, section 2.3). Services of
// other types are left out, and those whose control URL cannot be used.
func parseDescription(b []byte, at location) (description, error) {
	var d description
	var maker, name, number, kind, control string
	type found struct{ kind, control string }
	var list []found
	base := at
	err := walkXML(b, func(path []string) {
		if path[len(path)-1] == "service" {
			kind, control = "", ""
		}
	}, func(path []string) {
		if path[len(path)-1] == "service" && wantedService(kind) && len(list) < maxServices {
			list = append(list, found{kind, control})
		}
	}, func(path []string, text string) {
		root := len(path) == 3 // root, device, the element
		switch path[len(path)-1] {
		case "URLBase":
			if l, ok := parseLocation(text); ok {
				base = l
			}
		case "deviceType":
			if v, ok := strings.CutPrefix(text, "urn:schemas-upnp-org:device:InternetGatewayDevice:"); ok && root {
				d.version = printable(v, 4)
			}
		case "manufacturer":
			set(&maker, text, root)
		case "modelName":
			set(&name, text, root)
		case "modelNumber":
			set(&number, text, root)
		case "serviceType":
			kind = text
		case "controlURL":
			control = text
		}
	})
	if err != nil {
		return description{}, err
	}
	for _, f := range list {
		if l, ok := base.resolve(f.control); ok {
			d.services = append(d.services, igdService{f.kind, l})
		}
	}
	slices.SortStableFunc(d.services, func(a, b igdService) int { return rank(a.kind) - rank(b.kind) })
	d.model = printable(strings.Join([]string{maker, name, number}, " "), 96)
	return d, nil
}

func set(to *string, text string, root bool) {
	if root {
		*to = text
	}
}

func wantedService(kind string) bool { return rank(kind) < 3 }

// rank orders services by how they are preferred.
func rank(kind string) int {
	switch {
	case strings.HasPrefix(kind, typeIP):
		return 0
	case strings.HasPrefix(kind, typePPP):
		return 1
	case strings.HasPrefix(kind, typeFirewall):
		return 2
	}
	return 3
}

// version returns the version at the end of a service's type, 1 if there is none that can be read.
func (s igdService) version() int {
	if v, err := strconv.Atoi(s.kind[strings.LastIndexByte(s.kind, ':')+1:]); err == nil && v > 1 {
		return v
	}
	return 1
}
