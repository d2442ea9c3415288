// Command kubernetes writes the JSON schemas that kubeconform checks the manifests in
// examples/kubernetes against, from Kubernetes's own description of its API:
//
//	go run . [VERSION]
//
// The Go proxy has that description, as a part of the module k8s.io/kubernetes: 30 MB,
// of which the kinds below take little. So they are kept here, in schemas/, without
// descriptions, and with no room for misspelt fields.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const newest = "v1.37.2"

// kinds are those that the examples have, by the file of the API that describes them.
var kinds = map[string][]string{
	"api__v1":                     {"core.v1.Secret", "core.v1.Service", "core.v1.ServiceAccount", "core.v1.ConfigMap"},
	"apis__apps__v1":              {"apps.v1.Deployment", "apps.v1.StatefulSet"},
	"apis__policy__v1":            {"policy.v1.PodDisruptionBudget"},
	"apis__networking.k8s.io__v1": {"networking.v1.NetworkPolicy"},
}

func main() {
	version := newest
	if len(os.Args) > 1 {
		version = os.Args[1]
	}
	if err := run(version); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(version string) error {
	out, err := exec.Command("go", "mod", "download", "-json", "k8s.io/kubernetes@"+version).Output()
	if err != nil {
		return fmt.Errorf("go mod download k8s.io/kubernetes@%s: %w\n%s", version, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	for file, names := range kinds {
		text, err := os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/v3", file+"_openapi.json"))
		if err != nil {
			return err
		}
		var api struct {
			Components struct {
				Schemas map[string]map[string]any
			}
		}
		if err := json.Unmarshal(text, &api); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, name := range names {
			if err := write(api.Components.Schemas, "io.k8s.api."+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes the schema of a kind, whole, to the file where kubeconform looks for it.
func write(all map[string]map[string]any, name string) error {
	parts := strings.Split(name, ".")
	group, version, kind := parts[3], parts[4], parts[5]
	file := strings.ToLower(kind) + "-" + group + "-" + version + ".json"
	apiVersion := all[name]["x-kubernetes-group-version-kind"].([]any)[0].(map[string]any)
	full := apiVersion["version"].(string)
	if g := apiVersion["group"].(string); g != "" {
		full = g + "/" + full
	} else {
		file = strings.ToLower(kind) + "-" + version + ".json"
	}

	definitions := make(map[string]any)
	collect(all, name, definitions)
	top := definitions[name].(map[string]any)
	properties := top["properties"].(map[string]any)
	properties["apiVersion"] = map[string]any{"const": full}
	properties["kind"] = map[string]any{"const": kind}
	top["required"] = append([]any{"apiVersion", "kind", "metadata"}, list(top["required"])...)
	text, err := json.Marshal(map[string]any{"$ref": "#/definitions/" + name, "definitions": definitions})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join("schemas", file), append(text, '\n'), 0o644)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// collect adds a definition and all that it refers to.
func collect(all map[string]map[string]any, name string, to map[string]any) {
	if to[name] != nil {
		return
	}
	to[name] = true // on the way: definitions may refer to themselves
	to[name] = plain(all[name], func(ref string) string {
		other := strings.TrimPrefix(ref, "#/components/schemas/")
		collect(all, other, to)
		return "#/definitions/" + other
	})
}

// plain is a schema without what checks nothing.
func plain(schema map[string]any, refer func(string) string) map[string]any {
	short := make(map[string]any)
	for key, value := range schema {
		switch {
		case key == "$ref":
			short[key] = refer(value.(string))
		case key == "properties":
			properties := make(map[string]any)
			for name, property := range value.(map[string]any) {
				properties[name] = plain(property.(map[string]any), refer)
			}
			short[key] = properties
			short["additionalProperties"] = false
		case key == "items" || key == "additionalProperties":
			if inner, ok := value.(map[string]any); ok {
				value = plain(inner, refer)
			}
			short[key] = value
		case key == "allOf" || key == "oneOf" || key == "anyOf":
			var each []any
			for _, one := range value.([]any) {
				each = append(each, plain(one.(map[string]any), refer))
			}
			short[key] = each
		case key == "type" || key == "required" || key == "enum":
			short[key] = value
		}
	}
	if all := list(short["allOf"]); len(short) == 1 && len(all) == 1 {
		return all[0].(map[string]any)
	}
	return short
}
