// kstatus reads resources, one JSON document a line, and prints what kstatus computes for each: the
// status that Flux and `kubectl apply --wait` clients of cli-utils go by, a tab, and its message.
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	log.SetFlags(0)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var object unstructured.Unstructured
		if err := object.UnmarshalJSON(lines.Bytes()); err != nil {
			log.Fatal(err)
		}
		computed, err := status.Compute(&object)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\t%s\n", computed.Status, computed.Message)
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
