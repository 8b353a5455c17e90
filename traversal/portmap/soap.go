package portmap

import (
	"context"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"
)

// argument is one of a SOAP action's, in the order that the service's description has; gateways care about it.
type argument struct{ name, value string }

// soapRequest is the body of a call of an action (UPnP Device Architecture 1.1, section 3.2.1).
func soapRequest(kind, action string, args []argument) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?>` + "\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>`)
	b.WriteString(`<u:` + action + ` xmlns:u="`)
	xml.EscapeText(&b, []byte(kind))
	b.WriteString(`">`)
	for _, a := range args {
		b.WriteString("<" + a.name + ">")
		xml.EscapeText(&b, []byte(a.value))
		b.WriteString("</" + a.name + ">")
	}
	b.WriteString(`</u:` + action + `></s:Body></s:Envelope>` + "\r\n")
	return b.String()
}

// parseSOAP reads the answer to a call: the values by their names, or the fault as a *ResultError.
func parseSOAP(b []byte, action string) (map[string]string, error) {
	values := map[string]string{}
	answered := false
	var fault *ResultError
	err := walkXML(b, func(path []string) {
		if len(path) == 3 && path[0] == "Envelope" && path[1] == "Body" && path[2] == action+"Response" {
			answered = true
		}
	}, nil, func(path []string, text string) {
		switch {
		case path[0] != "Envelope" || len(path) < 4 || path[1] != "Body":
		case path[2] == action+"Response" && len(path) == 4:
			if _, twice := values[path[3]]; !twice {
				values[path[3]] = text
			}
		case path[2] == "Fault" && path[len(path)-1] == "errorCode":
			if code, err := strconv.Atoi(text); err == nil && code > 0 && fault == nil {
				fault = &ResultError{Protocol: UPnP, Code: code}
			}
		case path[2] == "Fault" && path[len(path)-1] == "errorDescription" && fault != nil:
			fault.Text = printable(text, 128)
		}
	})
	switch {
	case err != nil:
		return nil, err
	case fault != nil:
		return nil, fault
	case !answered:
		return nil, fmt.Errorf("%w: neither an answer to %s nor a fault", errXML, action)
	}
	return values, nil
}

// call invokes an action of a service.
func (l *link) call(ctx context.Context, s igdService, action string, args ...argument) (map[string]string, error) {
	body, err := l.post(ctx, s.control, `"`+s.kind+"#"+action+`"`, soapRequest(s.kind, action, args))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", action, err)
	}
	values, err := parseSOAP(body, action)
	if err != nil {
		if resultCode(err) == 0 {
			l.count(malformed)
		}
		return nil, fmt.Errorf("%s: %w", action, err)
	}
	return values, nil
}
