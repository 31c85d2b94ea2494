// The module check holds the checks of everything in deploy that is no Go code of the
// product; `make deploy-check` runs its tests. It is a module of its own, since Helm and
// its kin are large.
//
// Its program, `go run .` in this folder, writes the JSON schemas that kubeconform checks
// the chart with: those of the kinds in it, from the OpenAPI document of Kubernetes and
// from KEDA's CRD. Run it again for another version of Kubernetes.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// kinds are the chart's, by their names in the OpenAPI document.
var kinds = map[string]string{
	"configmap-v1":                  "io.k8s.api.core.v1.ConfigMap",
	"service-v1":                    "io.k8s.api.core.v1.Service",
	"serviceaccount-v1":             "io.k8s.api.core.v1.ServiceAccount",
	"deployment-apps-v1":            "io.k8s.api.apps.v1.Deployment",
	"job-batch-v1":                  "io.k8s.api.batch.v1.Job",
	"cronjob-batch-v1":              "io.k8s.api.batch.v1.CronJob",
	"networkpolicy-networking-v1":   "io.k8s.api.networking.v1.NetworkPolicy",
	"poddisruptionbudget-policy-v1": "io.k8s.api.policy.v1.PodDisruptionBudget",
}

const (
	kubernetes = "k8s.io/kubernetes@v1.34.2"
	keda       = "github.com/kedacore/keda/v2@v2.17.2"
	prefix     = "#/definitions/"
)

func main() {
	if err := run("schemas"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(to string) error {
	folder, err := module(kubernetes)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(folder, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		return err
	}
	var document struct {
		Definitions map[string]map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return err
	}
	for file, name := range kinds {
		schema, err := standalone(document.Definitions, name)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(to, file+".json"), schema); err != nil {
			return err
		}
	}
	return scaledObject(to)
}

// standalone returns a kind's schema with the definitions that it needs.
func standalone(all map[string]map[string]any, name string) (map[string]any, error) {
	needed := map[string]any{}
	var visit func(value any) error
	visit = func(value any) error {
		switch v := value.(type) {
		case []any:
			for _, x := range v {
				if err := visit(x); err != nil {
					return err
				}
			}
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				target := strings.TrimPrefix(ref, prefix)
				if needed[target] != nil {
					return nil
				}
				definition, ok := all[target]
				if !ok {
					return fmt.Errorf("%s is not defined", ref)
				}
				strict(target, definition)
				needed[target] = definition
				return visit(definition)
			}
			for _, x := range v {
				if err := visit(x); err != nil {
					return err
				}
			}
		}
		return nil
	}
	root := map[string]any{"$ref": prefix + name}
	if err := visit(root); err != nil {
		return nil, err
	}
	root["$schema"], root["definitions"] = "http://json-schema.org/schema#", needed
	return root, nil
}

// strict leaves out the prose, refuses keys that do not exist, and says what OpenAPI
// says by a format.
func strict(name string, definition map[string]any) {
	switch name {
	case "io.k8s.apimachinery.pkg.util.intstr.IntOrString":
		clear(definition)
		definition["oneOf"] = []any{map[string]any{"type": "string"}, map[string]any{"type": "integer"}}
		return
	case "io.k8s.apimachinery.pkg.api.resource.Quantity":
		clear(definition)
		definition["oneOf"] = []any{map[string]any{"type": "string"}, map[string]any{"type": "number"}}
		return
	}
	if _, ok := definition["properties"]; ok {
		definition["additionalProperties"] = false
	}
	prune(definition)
}

func prune(value any) {
	switch v := value.(type) {
	case []any:
		for _, x := range v {
			prune(x)
		}
	case map[string]any:
		if _, ok := v["description"].(string); ok {
			delete(v, "description")
		}
		for key, x := range v {
			if strings.HasPrefix(key, "x-kubernetes") {
				delete(v, key)
				continue
			}
			prune(x)
		}
	}
}

// scaledObject writes the schema of KEDA's ScaledObject.
func scaledObject(to string) error {
	folder, err := module(keda)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(folder, "config", "crd", "bases", "keda.sh_scaledobjects.yaml"))
	if err != nil {
		return err
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					Object map[string]any `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(data, &crd); err != nil {
		return err
	}
	schema := crd.Spec.Versions[0].Schema.Object
	prune(schema)
	shut(schema)
	return write(filepath.Join(to, "scaledobject-keda-v1alpha1.json"), schema)
}

// shut refuses keys that do not exist, below what the CRD describes.
func shut(value any) {
	v, ok := value.(map[string]any)
	if !ok {
		return
	}
	if properties, ok := v["properties"].(map[string]any); ok {
		if _, open := v["additionalProperties"]; !open {
			v["additionalProperties"] = false
		}
		for _, x := range properties {
			shut(x)
		}
	}
	shut(v["items"])
}

// module returns the folder of a module in Go's cache.
func module(version string) (string, error) {
	out, err := exec.Command("go", "mod", "download", "-json", version).Output()
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w\n%s", version, err, out)
	}
	var found struct{ Dir string }
	err = json.Unmarshal(out, &found)
	return found.Dir, err
}

func write(path string, schema map[string]any) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(schema); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
