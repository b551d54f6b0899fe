// Prints the Khronos glTF validator's report for the file named on the command line; exits 3 where the validator is not installed.
const fs = require("fs");
let validator;
try {
  validator = require("gltf-validator");
} catch (error) {
  process.exit(3);
}
validator
  .validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then((report) => console.log(JSON.stringify(report)))
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
