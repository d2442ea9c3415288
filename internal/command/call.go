package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

const root = "/distributed_ratelimit/"

// call makes a call to the admin endpoint at an address.
func call(address, method, path string, body any) (answer []byte, err error) {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(text)
	}
	response, err := caddycmd.AdminAPIRequest(address, method, root+path, http.Header{}, sent)
	if err != nil {
		return nil, failure(address, err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %v", address, err)
	}
	return answer, nil
}

// responded is how caddycmd.AdminAPIRequest words an error that Caddy answers.
var responded = regexp.MustCompile(`(?s)^caddy responded with error: HTTP (\d+): (.*)$`)

// failure is the sentence in an answer, or why there is none.
func failure(address string, err error) error {
	found := responded.FindStringSubmatch(err.Error())
	if found == nil {
		return fmt.Errorf("%s; is Caddy running, with its admin endpoint at %s? --address says where else it is", printable(strings.TrimPrefix(err.Error(), "performing request: ")), address)
	}
	var sentence struct {
		Error string `json:"error"`
	}
	if json.Unmarshal([]byte(found[2]), &sentence) == nil && sentence.Error != "" {
		return errors.New(printable(sentence.Error))
	}
	if found[1] == "404" {
		return fmt.Errorf("the Caddy at %s has no admin API for rate limits; it was built without this plugin, or with an older one", address)
	}
	return fmt.Errorf("the Caddy at %s answered with status %s: %s", address, found[1], printable(strings.TrimSpace(found[2])))
}
