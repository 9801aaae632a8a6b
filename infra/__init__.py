"""What the deployed flows run on: work pools, images, manifests, policies. Data, but for what checks it."""
